{{/*
What values.schema.json cannot say: values that contradict each other or lack a secret. All faults at once, each with what to set.
*/}}
{{- define "fechatter.refuse" -}}
{{- $faults := list -}}
{{- $v := .Values -}}
{{- $tls := $v.gateway.tls -}}
{{- if and $tls.existingSecret $tls.certManager.enabled -}}
{{- $faults = append $faults "gateway.tls: two sources of the certificate; set either existingSecret or certManager.enabled, not both" -}}
{{- else if not (or $tls.existingSecret $tls.certManager.enabled) -}}
{{- $faults = append $faults "gateway.tls.existingSecret: set it to a Secret with tls.crt and tls.key, or set gateway.tls.certManager.enabled; the gateway serves HTTPS only" -}}
{{- end -}}
{{- if $tls.certManager.enabled -}}
{{- if not $tls.certManager.issuerName -}}
{{- $faults = append $faults "gateway.tls.certManager.issuerName: set it to the issuer that signs the certificate" -}}
{{- end -}}
{{- if not $v.gateway.publicHost -}}
{{- $faults = append $faults "gateway.publicHost: set it to the name the certificate is for, such as chat.example.org" -}}
{{- end -}}
{{- end -}}
{{- if not $v.chat.signingKeys.existingSecret -}}
{{- $faults = append $faults "chat.signingKeys.existingSecret: set it to a Secret of signing keys; make one with `chat_service keys new --dir keys` and `kubectl create secret generic fechatter-signing-keys --from-file=keys`" -}}
{{- end -}}
{{- if and $v.database.existingSecret $v.database.bundled.enabled -}}
{{- $faults = append $faults "database: two sources; set either existingSecret (an external server) or bundled.enabled, not both" -}}
{{- else if not (or $v.database.existingSecret $v.database.bundled.enabled) -}}
{{- $faults = append $faults "database.existingSecret: set it to a Secret with owner-url, chat-url, notify-url and indexer-url, or set database.bundled.enabled for a trial" -}}
{{- end -}}
{{- if and $v.database.bundled.enabled (not $v.database.bundled.existingSecret) -}}
{{- $faults = append $faults "database.bundled.existingSecret: set it to a Secret with postgres-password, owner-password, chat-password, notify-password and indexer-password" -}}
{{- end -}}
{{- if and $v.nats.url $v.nats.bundled.enabled -}}
{{- $faults = append $faults "nats: two sources; set either url (an external server) or bundled.enabled, not both" -}}
{{- else if not (or $v.nats.url $v.nats.bundled.enabled) -}}
{{- $faults = append $faults "nats.url: set it to the NATS servers, such as nats://nats.nats:4222, or set nats.bundled.enabled for a trial" -}}
{{- end -}}
{{- if not $v.nats.existingSecret -}}
{{- $faults = append $faults "nats.existingSecret: set it to a Secret with gateway-password, chat-password, notify-password and indexer-password" -}}
{{- end -}}
{{- if and $v.nats.bundled.enabled (gt (int $v.nats.streamReplicas) 1) -}}
{{- $faults = append $faults "nats.streamReplicas: the bundled NATS is one server; set 1, or nats.url to a cluster" -}}
{{- end -}}
{{- if eq $v.indexer.engine "meilisearch" -}}
{{- if and $v.meilisearch.url $v.meilisearch.bundled.enabled -}}
{{- $faults = append $faults "meilisearch: two sources; set either url (an external server) or bundled.enabled, not both" -}}
{{- else if not (or $v.meilisearch.url $v.meilisearch.bundled.enabled) -}}
{{- $faults = append $faults "meilisearch.url: set it, or meilisearch.bundled.enabled, or indexer.engine to embedded" -}}
{{- end -}}
{{- if not $v.meilisearch.existingSecret -}}
{{- $faults = append $faults "meilisearch.existingSecret: set it to a Secret with api-key (and master-key for the bundled server)" -}}
{{- end -}}
{{- else -}}
{{- if or $v.meilisearch.url $v.meilisearch.bundled.enabled -}}
{{- $faults = append $faults "meilisearch: it would not be used; set indexer.engine to meilisearch, or leave url empty and bundled.enabled false" -}}
{{- end -}}
{{- if or $v.indexer.autoscaling.enabled (and (not (kindIs "invalid" $v.indexer.replicas)) (gt (int $v.indexer.replicas) 1)) -}}
{{- $faults = append $faults "indexer.replicas: the embedded engine is one process with one disk; set 1 and autoscaling.enabled false, or indexer.engine to meilisearch" -}}
{{- end -}}
{{- end -}}
{{- if $v.probe.enabled -}}
{{- if not $v.probe.existingSecret -}}
{{- $faults = append $faults "probe.existingSecret: set it to a Secret with email and password; the account is made in the first round" -}}
{{- end -}}
{{- if not $v.gateway.publicHost -}}
{{- $faults = append $faults "gateway.publicHost: set it to the name in the certificate, which the probe checks, or probe.enabled to false" -}}
{{- end -}}
{{- end -}}
{{- range $component := list "gateway" "chat" "notify" "indexer" -}}
{{- $values := index $v $component -}}
{{- if and $values.autoscaling.enabled (not (kindIs "invalid" $values.replicas)) -}}
{{- $faults = append $faults (printf "%s.replicas: an autoscaler sets the number; leave replicas out, or set %s.autoscaling.enabled to false" $component $component) -}}
{{- end -}}
{{- if and $values.autoscaling.enabled (gt (int $values.autoscaling.minReplicas) (int $values.autoscaling.maxReplicas)) -}}
{{- $faults = append $faults (printf "%s.autoscaling.maxReplicas: %d is below minReplicas %d; raise it" $component (int $values.autoscaling.maxReplicas) (int $values.autoscaling.minReplicas)) -}}
{{- end -}}
{{- $least := ternary (int $values.autoscaling.minReplicas) (int (include "fechatter.replicas" (dict "values" $values "default" 2))) $values.autoscaling.enabled -}}
{{- $away := int $values.podDisruptionBudget.maxUnavailable -}}
{{- if and $values.podDisruptionBudget.enabled (gt $least 1) (ge $away $least) -}}
{{- $faults = append $faults (printf "%s.podDisruptionBudget.maxUnavailable: %d of %d replicas would leave none; set at most %d" $component $away $least (sub $least 1)) -}}
{{- end -}}
{{- range $key := list "issuer" "audience" -}}
{{- $ours := get ($v.chat.settings.auth | default dict) $key | default "fechatter" -}}
{{- $theirs := get ($values.settings.auth | default dict) $key | default "fechatter" -}}
{{- if ne $ours $theirs -}}
{{- $faults = append $faults (printf "%s.settings.auth.%s: %q would refuse the tokens that chat signs for %q; set the same one in gateway, chat, notify and indexer" $component $key $theirs $ours) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and $v.gateway.service.loadBalancerSourceRanges (ne $v.gateway.service.type "LoadBalancer") -}}
{{- $faults = append $faults "gateway.service.loadBalancerSourceRanges: only a LoadBalancer heeds it; set gateway.service.type to LoadBalancer or leave it empty" -}}
{{- end -}}
{{- with $v.gateway.settings.hosts -}}
{{- $public := $v.gateway.publicHost -}}
{{- if and $public (not (or (has $public .) (has (printf "*.%s" (regexReplaceAll "^[^.]*[.]" $public "")) .))) -}}
{{- $faults = append $faults (printf "gateway.settings.hosts: clients ask for gateway.publicHost, which is not in it; add %s" $public) -}}
{{- else if and (not $public) $v.tests.enabled -}}
{{- $faults = append $faults "gateway.publicHost: set it to one of gateway.settings.hosts, for `helm test` to ask for, or set tests.enabled to false" -}}
{{- end -}}
{{- end -}}
{{- if eq (int $v.gateway.service.httpsPort) (int $v.gateway.service.httpPort) -}}
{{- $faults = append $faults "gateway.service.httpPort: must differ from httpsPort" -}}
{{- end -}}
{{- if and $v.notify.autoscaling.streamsPerPod (not $v.notify.autoscaling.enabled) -}}
{{- $faults = append $faults "notify.autoscaling.streamsPerPod: it would not be used; set notify.autoscaling.enabled to true, or streamsPerPod to 0" -}}
{{- end -}}
{{- with $v.notify.settings.stream -}}
{{- $least := int (.heartbeat_min_seconds | default 15) -}}
{{- $most := int (.heartbeat_max_seconds | default 25) -}}
{{- if gt $least $most -}}
{{- $faults = append $faults (printf "notify.settings.stream.heartbeat_max_seconds: %d is below heartbeat_min_seconds %d; raise it" $most $least) -}}
{{- end -}}
{{- end -}}
{{- with $v.indexer.settings.batch -}}
{{- $calm := int (.max_events | default 10) -}}
{{- $backlog := int (.backlog_max_events | default 1000) -}}
{{- if gt $calm $backlog -}}
{{- $faults = append $faults (printf "indexer.settings.batch.backlog_max_events: %d is below max_events %d; raise it" $backlog $calm) -}}
{{- end -}}
{{- end -}}
{{- if and $v.telemetry.existingSecret (not $v.telemetry.otlpEndpoint) -}}
{{- $faults = append $faults "telemetry.existingSecret: it would not be used; set telemetry.otlpEndpoint, or leave it empty" -}}
{{- end -}}
{{- $labelled := dict "commonLabels" $v.commonLabels -}}
{{- range $component := list "gateway" "chat" "notify" "indexer" "probe" "migrations" "tests" -}}
{{- $_ := set $labelled (printf "%s.pod.labels" $component) ((index $v $component).pod.labels | default dict) -}}
{{- end -}}
{{- range $server := list "database" "nats" "meilisearch" -}}
{{- $_ := set $labelled (printf "%s.bundled.pod.labels" $server) ((index $v $server).bundled.pod.labels | default dict) -}}
{{- end -}}
{{- range $where, $labels := $labelled -}}
{{- range $key, $_ := $labels -}}
{{- if regexMatch "^(app[.]kubernetes[.]io|helm[.]sh)/" $key -}}
{{- $faults = append $faults (printf "%s: %s is the chart's own; choose another key" $where $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if not (regexMatch "^[a-z]" (include "fechatter.fullname" .)) -}}
{{- $faults = append $faults (printf "fullnameOverride: names of Services begin with a letter, %s does not; set it to one that does" (include "fechatter.fullname" .)) -}}
{{- end -}}
{{- range $switch, $files := dict "prometheusRule" "files/rules/*.yaml" "dashboards" "files/dashboards/*.json" -}}
{{- if and (index $v.monitoring $switch).enabled (not ($.Files.Glob $files)) -}}
{{- $faults = append $faults (printf "monitoring.%s.enabled: this chart was packaged without %s; set it to false" $switch $files) -}}
{{- end -}}
{{- end -}}
{{- if $faults -}}
{{- fail (printf "\n\n  * %s\n" (join "\n  * " $faults)) -}}
{{- end -}}
{{- end -}}

{{/* Name of the chart in labels. */}}
{{- define "fechatter.name" -}}
{{- default .Chart.Name .Values.nameOverride -}}
{{- end -}}

{{/*
Prefix of every object's name; short enough that a component's name fits behind it. Releases may have dots in their names, Services
may not.
*/}}
{{- define "fechatter.fullname" -}}
{{- $name := include "fechatter.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | replace "." "-" | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | replace "." "-" | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Labels that select a component's pods. Takes {root, component}. */}}
{{- define "fechatter.selector" -}}
app.kubernetes.io/name: {{ include "fechatter.name" .root | quote }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* All labels of a component's objects. Takes {root, component, more}; `more` goes over commonLabels, and nothing over the chart's own. */}}
{{- define "fechatter.labels" -}}
{{- $version := .root.Values.image.tag | default .root.Chart.AppVersion -}}
{{- $own := dict
  "app.kubernetes.io/name" (include "fechatter.name" .root)
  "app.kubernetes.io/instance" .root.Release.Name
  "app.kubernetes.io/component" .component
  "app.kubernetes.io/part-of" "fechatter"
  "app.kubernetes.io/version" ($version | trunc 63 | trimAll "-_.")
  "app.kubernetes.io/managed-by" .root.Release.Service
  "helm.sh/chart" (printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimAll "-_.") -}}
{{- merge $own (.more | default dict) .root.Values.commonLabels | toYaml -}}
{{- end -}}

{{/* What every object begins its metadata with. Takes {root, component, name, more}. */}}
{{- define "fechatter.metadata" -}}
name: {{ .name | quote }}
namespace: {{ .root.Release.Namespace | quote }}
labels: {{- include "fechatter.labels" . | nindent 2 }}
{{- end -}}

{{/* Reference of our image; a digest goes over the tag. */}}
{{- define "fechatter.image" -}}
{{- with .Values.image -}}
{{- $name := printf "%s/%s" .registry .repository -}}
{{- if .digest -}}{{ printf "%s@%s" $name .digest }}{{- else -}}{{ printf "%s:%s" $name (.tag | default $.Chart.AppVersion) }}{{- end -}}
{{- end -}}
{{- end -}}

{{/* What every pod begins its specification with. Takes {root, account, user, pod}; `pod` is a `pod` of the values. */}}
{{- define "fechatter.podSpec" -}}
serviceAccountName: {{ .account | quote }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- with .pod.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with .pod.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .pod.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
securityContext: {{- include "fechatter.podSecurity" .user | nindent 2 }}
{{- end -}}

{{/* An account without rights, whose token nobody gets. Takes {root, component, name, annotations}. */}}
{{- define "fechatter.serviceAccount" -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  {{- include "fechatter.metadata" . | nindent 2 }}
  {{- with .annotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
automountServiceAccountToken: false
{{- end -}}

{{/* Authorities that servers of others are certified by: where they are mounted, and who looks there. */}}
{{- define "fechatter.authoritiesMount" -}}
- {name: authorities, mountPath: /etc/fechatter/authorities, readOnly: true}
{{- end -}}
{{- define "fechatter.authoritiesVolume" -}}
- name: authorities
  secret:
    secretName: {{ .Values.certificateAuthorities.existingSecret | quote }}
    defaultMode: 0440
    items: [{key: ca.crt, path: ca.crt}]
{{- end -}}
{{- define "fechatter.authoritiesEnv" -}}
# PostgreSQL's client; NATS', Meilisearch's and the collector's.
- {name: PGSSLROOTCERT, value: /etc/fechatter/authorities/ca.crt}
- {name: SSL_CERT_FILE, value: /etc/fechatter/authorities/ca.crt}
{{- end -}}

{{/* Security context of every container: the restricted Pod Security Standard and a read-only root. */}}
{{- define "fechatter.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* Security context of every pod. Takes a user id. */}}
{{- define "fechatter.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{/* A value of ours as figment reads it from a variable: texts and lists in TOML's form. */}}
{{- define "fechatter.setting" -}}
{{- if kindIs "string" . -}}{{ . | toJson }}
{{- else if kindIs "float64" . -}}{{ if eq (floor .) . }}{{ int64 . }}{{ else }}{{ . }}{{ end }}
{{- else if kindIs "slice" . -}}
[{{- range $i, $item := . }}{{ if $i }}, {{ end }}{{ include "fechatter.setting" $item }}{{ end -}}]
{{- else if kindIs "map" . -}}
{{ "{" }}{{- $first := true -}}{{- range $key, $item := . }}{{ if not $first }}, {{ end }}{{ $key }} = {{ include "fechatter.setting" $item }}{{ $first = false }}{{ end -}}{{ "}" }}
{{- else -}}{{ . }}
{{- end -}}
{{- end -}}

{{/* `settings` as environment variables; rate limits are single values that are tables. Takes {prefix, settings}. */}}
{{- define "fechatter.settings" -}}
{{- range $section, $keys := .settings }}
{{- if kindIs "map" $keys }}
{{- range $key, $value := $keys }}
- name: {{ printf "%s__%s__%s" $.prefix ($section | upper) ($key | upper) }}
  value: {{ include "fechatter.setting" $value | quote }}
{{- end }}
{{- else }}
- name: {{ printf "%s__%s" $.prefix ($section | upper) }}
  value: {{ include "fechatter.setting" $keys | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The Secret of the database: URLs of an external server, or passwords of the bundled one. */}}
{{- define "fechatter.databaseEnv" -}}
{{- $db := .root.Values.database -}}
{{- if $db.bundled.enabled }}
- name: DATABASE_PASSWORD
  valueFrom: {secretKeyRef: {name: {{ $db.bundled.existingSecret | quote }}, key: {{ .role }}-password}}
- name: {{ .variable }}
  value: postgres://{{ ternary "fechatter_owner" (printf "fechatter_%s_login" .role) (eq .role "owner") }}:$(DATABASE_PASSWORD)@{{ include "fechatter.fullname" .root }}-postgres:5432/fechatter
{{- else }}
- name: {{ .variable }}
  valueFrom: {secretKeyRef: {name: {{ $db.existingSecret | quote }}, key: {{ .role }}-url}}
{{- end }}
{{- end -}}

{{- define "fechatter.natsUrl" -}}
{{- if .Values.nats.bundled.enabled -}}nats://{{ include "fechatter.fullname" . }}-nats:4222{{- else -}}{{ .Values.nats.url }}{{- end -}}
{{- end -}}

{{/* Replicas of a component: what is set, else its default. Takes {values, default}. */}}
{{- define "fechatter.replicas" -}}
{{- if kindIs "invalid" .values.replicas -}}{{ .default }}{{- else -}}{{ int .values.replicas }}{{- end -}}
{{- end -}}

{{- define "fechatter.tlsSecret" -}}
{{- if .Values.gateway.tls.certManager.enabled -}}{{ include "fechatter.fullname" . }}-gateway-tls{{- else -}}{{ .Values.gateway.tls.existingSecret }}{{- end -}}
{{- end -}}

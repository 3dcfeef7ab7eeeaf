{{/*
The Deployment of one of our processes. Takes
{root, component, binary, prefix, values, defaultReplicas, admin, ports, graceSeconds, env, mounts, volumes, recreate, withoutNats};
`ports` is a list of {name, port}; `env`, `mounts` and `volumes` are YAML text.
*/}}
{{- define "fechatter.workload" -}}
{{- $root := .root -}}
{{- $name := printf "%s-%s" (include "fechatter.fullname" $root) .component -}}
{{- $labels := dict "root" $root "component" .component -}}
{{- $pod := .values.pod -}}
{{- /* The probe asks the gateway alone, whose certificate is checked as clients check it. */ -}}
{{- $authorities := ternary $root nil (and (not .withoutNats) (ne $root.Values.certificateAuthorities.existingSecret "")) -}}
apiVersion: apps/v1
kind: Deployment
metadata: {{- include "fechatter.metadata" (merge (dict "name" $name) $labels) | nindent 2 }}
spec:
  {{- /* An autoscaler owns the number; setting it here would take it back at each upgrade. */}}
  {{- if not .values.autoscaling.enabled }}
  replicas: {{ include "fechatter.replicas" (dict "values" .values "default" .defaultReplicas) }}
  {{- end }}
  revisionHistoryLimit: 5
  {{- /* Until the gateways know a new pod: 5 s of cluster DNS, 5 s of their own, and a margin. */}}
  minReadySeconds: 15
  strategy:
    {{- if .recreate }}
    type: Recreate
    {{- else }}
    type: RollingUpdate
    rollingUpdate: {maxSurge: 1, maxUnavailable: 0}
    {{- end }}
  selector:
    matchLabels: {{- include "fechatter.selector" $labels | nindent 6 }}
  template:
    metadata:
      labels: {{- include "fechatter.labels" (merge (dict "more" $pod.labels) $labels) | nindent 8 }}
      {{- with $pod.annotations }}
      annotations: {{- toYaml . | nindent 8 }}
      {{- end }}
    spec:
      {{- include "fechatter.podSpec" (dict "root" $root "account" $name "user" 10001 "pod" $pod) | nindent 6 }}
      terminationGracePeriodSeconds: {{ .graceSeconds }}
      affinity:
        podAntiAffinity:
          preferredDuringSchedulingIgnoredDuringExecution:
            - weight: 100
              podAffinityTerm:
                topologyKey: kubernetes.io/hostname
                labelSelector:
                  matchLabels: {{- include "fechatter.selector" $labels | nindent 20 }}
      topologySpreadConstraints:
        - maxSkew: 1
          topologyKey: topology.kubernetes.io/zone
          whenUnsatisfiable: ScheduleAnyway
          labelSelector:
            matchLabels: {{- include "fechatter.selector" $labels | nindent 14 }}
      containers:
        - name: {{ .component }}
          image: {{ include "fechatter.image" $root | quote }}
          imagePullPolicy: {{ $root.Values.image.pullPolicy }}
          command: [{{ printf "/usr/local/bin/%s" .binary }}]
          ports:
            {{- range .ports }}
            - {name: {{ .name }}, containerPort: {{ .port }}, protocol: TCP}
            {{- end }}
            - {name: admin, containerPort: {{ .admin }}, protocol: TCP}
          env:
            {{- range .ports }}
            {{- if .variable }}
            - name: {{ $.prefix }}__{{ .variable }}
              value: 0.0.0.0:{{ .port }}
            {{- end }}
            {{- end }}
            - name: {{ .prefix }}__ADMIN_LISTEN
              value: 0.0.0.0:{{ .admin }}
            - name: {{ .prefix }}__LOG__FORMAT
              value: {{ $root.Values.log.format }}
            - name: {{ .prefix }}__LOG__FILTER
              value: {{ $root.Values.log.filter | quote }}
            {{- if not .withoutNats }}
            - name: {{ .prefix }}__NATS__URL
              value: {{ include "fechatter.natsUrl" $root | quote }}
            - name: {{ .prefix }}__NATS__USER
              value: {{ .component }}
            - name: NATS_PASSWORD
              valueFrom: {secretKeyRef: {name: {{ $root.Values.nats.existingSecret | quote }}, key: {{ .component }}-password}}
            # Quoted: a password of digits alone must not be read as a number.
            - name: {{ .prefix }}__NATS__PASSWORD
              value: '"$(NATS_PASSWORD)"'
            {{- end }}
            {{- .env | trim | nindent 12 }}
            {{- with include "fechatter.settings" (dict "prefix" .prefix "settings" .values.settings) | trim }}
            {{- . | nindent 12 }}
            {{- end }}
            {{- include "fechatter.telemetryEnv" (dict "root" $root "component" .component) | trim | nindent 12 }}
            {{- with $authorities }}
            {{- include "fechatter.authoritiesEnv" . | nindent 12 }}
            {{- end }}
          startupProbe:
            httpGet: {path: /live, port: admin}
            periodSeconds: 2
            failureThreshold: 60
          livenessProbe:
            httpGet: {path: /live, port: admin}
            periodSeconds: 10
            timeoutSeconds: 5
            failureThreshold: 6
          readinessProbe:
            httpGet: {path: /ready, port: admin}
            periodSeconds: 5
            timeoutSeconds: 3
            failureThreshold: 3
          resources: {{- toYaml .values.resources | nindent 12 }}
          securityContext: {{- include "fechatter.containerSecurity" . | nindent 12 }}
          {{- if or (trim (.mounts | default "")) $authorities }}
          volumeMounts:
            {{- with trim (.mounts | default "") }}
            {{- . | nindent 12 }}
            {{- end }}
            {{- with $authorities }}
            {{- include "fechatter.authoritiesMount" . | nindent 12 }}
            {{- end }}
      volumes:
        {{- with trim (.volumes | default "") }}
        {{- . | nindent 8 }}
        {{- end }}
        {{- with $authorities }}
        {{- include "fechatter.authoritiesVolume" . | nindent 8 }}
        {{- end }}
          {{- end }}
---
{{ include "fechatter.serviceAccount" (merge (dict "name" $name) $labels) }}
{{- $replicas := int (include "fechatter.replicas" (dict "values" .values "default" .defaultReplicas)) }}
{{- if .values.autoscaling.enabled }}
{{- $replicas = int .values.autoscaling.minReplicas }}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {{- include "fechatter.metadata" (merge (dict "name" $name) $labels) | nindent 2 }}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: {{ $name | quote }}}
  minReplicas: {{ .values.autoscaling.minReplicas }}
  maxReplicas: {{ .values.autoscaling.maxReplicas }}
  metrics:
    - type: Resource
      resource:
        name: cpu
        target: {type: Utilization, averageUtilization: {{ .values.autoscaling.cpuPercent }}}
    {{- with .values.autoscaling.streamsPerPod }}
    - type: Pods
      pods:
        metric: {name: notify_streams}
        target: {type: AverageValue, averageValue: {{ int64 . | quote }}}
    {{- end }}
  behavior:
    scaleDown:
      stabilizationWindowSeconds: 300
      policies: [{type: Pods, value: 1, periodSeconds: 120}]
{{- end }}
{{- /* For a single replica a budget would block the draining of its node for ever. */}}
{{- if and .values.podDisruptionBudget.enabled (gt $replicas 1) }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {{- include "fechatter.metadata" (merge (dict "name" $name) $labels) | nindent 2 }}
spec:
  maxUnavailable: {{ .values.podDisruptionBudget.maxUnavailable }}
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels: {{- include "fechatter.selector" $labels | nindent 6 }}
{{- end }}
{{- end -}}

{{/* A Service without an address of its own: the gateway balances over the pods itself. Takes {root, component, port}. */}}
{{- define "fechatter.headless" -}}
apiVersion: v1
kind: Service
metadata:
  {{- include "fechatter.metadata" (dict "root" .root "component" .component "name" (printf "%s-%s" (include "fechatter.fullname" .root) .component)) | nindent 2 }}
spec:
  clusterIP: None
  selector: {{- include "fechatter.selector" . | nindent 4 }}
  ports:
    - {name: {{ .portName | default "http" }}, port: {{ .port }}, targetPort: {{ .portName | default "http" }}, protocol: TCP}
{{- end -}}

{{/* Where telemetry goes, and what each process is called in it. Takes {root, component}. */}}
{{- define "fechatter.telemetryEnv" -}}
{{- $values := .root.Values.telemetry -}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: POD_UID
  valueFrom: {fieldRef: {fieldPath: metadata.uid}}
- name: NODE_NAME
  valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
- name: OTEL_SERVICE_INSTANCE_ID
  value: $(POD_NAME)
- name: OTEL_RESOURCE_ATTRIBUTES
  value: "k8s.namespace.name={{ .root.Release.Namespace }},k8s.pod.name=$(POD_NAME),k8s.pod.uid=$(POD_UID),k8s.node.name=$(NODE_NAME),k8s.container.name={{ .component }},k8s.deployment.name={{ include "fechatter.fullname" .root }}-{{ .component }}{{ range $key, $value := $values.resourceAttributes }},{{ $key }}={{ $value }}{{ end }}"
{{- with $values.otlpEndpoint }}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ . | quote }}
{{- with $values.existingSecret }}
- name: OTEL_EXPORTER_OTLP_HEADERS
  valueFrom: {secretKeyRef: {name: {{ . | quote }}, key: otlp-headers}}
{{- end }}
- name: OTEL_TRACES_SAMPLER
  value: parentbased_traceidratio
- name: OTEL_TRACES_SAMPLER_ARG
  value: {{ $values.traceRatio | quote }}
{{- end }}
{{- end -}}

{{- define "fechatter.jwksUrl" -}}
http://{{ include "fechatter.fullname" . }}-chat:6688/.well-known/jwks.json
{{- end -}}

{{/*
One server for trials: a StatefulSet of one pod with a disk, its Service and ServiceAccount.
Takes {root, component, values, port, user, portName, container, volumes, dataPath}; `container` and `volumes` are YAML text.
*/}}
{{- define "fechatter.bundledServer" -}}
{{- $name := printf "%s-%s" (include "fechatter.fullname" .root) .component -}}
{{- $labels := dict "root" .root "component" .component -}}
apiVersion: apps/v1
kind: StatefulSet
metadata:
  name: {{ $name }}
  namespace: {{ .root.Release.Namespace }}
  labels: {{- include "fechatter.labels" $labels | nindent 4 }}
spec:
  replicas: 1
  serviceName: {{ $name }}
  selector:
    matchLabels: {{- include "fechatter.selector" $labels | nindent 6 }}
  template:
    metadata:
      labels: {{- include "fechatter.labels" $labels | nindent 8 }}
      annotations:
        checksum/config: {{ .config | default "" | sha256sum }}
    spec:
      serviceAccountName: {{ $name }}
      automountServiceAccountToken: false
      enableServiceLinks: false
      terminationGracePeriodSeconds: 60
      securityContext: {{- include "fechatter.podSecurity" .user | nindent 8 }}
      containers:
        - name: {{ .component }}
          image: {{ .values.image }}
          ports:
            - {name: {{ .portName }}, containerPort: {{ .port }}, protocol: TCP}
          {{- .container | trim | nindent 10 }}
          resources: {{- toYaml .values.resources | nindent 12 }}
          securityContext: {{- include "fechatter.containerSecurity" . | nindent 12 }}
          volumeMounts:
            - {name: data, mountPath: {{ .dataPath }}}
            - {name: tmp, mountPath: /tmp}
            {{- with .mounts }}
            {{- . | trim | nindent 12 }}
            {{- end }}
      volumes:
        - name: tmp
          emptyDir: {}
        {{- with .volumes }}
        {{- . | trim | nindent 8 }}
        {{- end }}
  volumeClaimTemplates:
    - apiVersion: v1
      kind: PersistentVolumeClaim
      metadata: {name: data}
      spec:
        accessModes: [ReadWriteOnce]
        {{- with .values.storage.storageClass }}
        storageClassName: {{ . }}
        {{- end }}
        resources: {requests: {storage: {{ .values.storage.size }}}}
---
{{ include "fechatter.headless" (dict "root" .root "component" .component "port" .port "portName" .portName) }}
---
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ $name }}
  namespace: {{ .root.Release.Namespace }}
  labels: {{- include "fechatter.labels" $labels | nindent 4 }}
automountServiceAccountToken: false
{{- end -}}

{{/*
One server for trials: a StatefulSet of one pod with a disk, its Service and ServiceAccount.
Takes {root, component, values, port, user, portName, container, volumes, dataPath}; `container` and `volumes` are YAML text.
*/}}
{{- define "fechatter.bundledServer" -}}
{{- $name := printf "%s-%s" (include "fechatter.fullname" .root) .component -}}
{{- $labels := dict "root" .root "component" .component -}}
apiVersion: apps/v1
kind: StatefulSet
metadata: {{- include "fechatter.metadata" (merge (dict "name" $name) $labels) | nindent 2 }}
spec:
  replicas: 1
  serviceName: {{ $name | quote }}
  selector:
    matchLabels: {{- include "fechatter.selector" $labels | nindent 6 }}
  template:
    metadata:
      labels: {{- include "fechatter.labels" (merge (dict "more" .values.pod.labels) $labels) | nindent 8 }}
      annotations:
        checksum/config: {{ .config | default "" | sha256sum }}
        {{- with .values.pod.annotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      {{- include "fechatter.podSpec" (dict "root" .root "account" $name "user" .user "pod" .values.pod) | nindent 6 }}
      terminationGracePeriodSeconds: 60
      containers:
        - name: {{ .component }}
          image: {{ .values.image | quote }}
          imagePullPolicy: {{ .root.Values.image.pullPolicy }}
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
        storageClassName: {{ . | quote }}
        {{- end }}
        resources: {requests: {storage: {{ .values.storage.size | quote }}}}
---
{{ include "fechatter.headless" (dict "root" .root "component" .component "port" .port "portName" .portName) }}
---
{{ include "fechatter.serviceAccount" (merge (dict "name" $name) $labels) }}
{{- end -}}

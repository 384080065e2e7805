{{- /* Pod template of an arm, without the patch of its spec: {root, it, name, settings}. */ -}}
{{- define "headrace.replicaTemplate" -}}
{{- $pod := .it.pod | default dict -}}
{{- $preStop := include "headrace.preStopSeconds" .root -}}
{{- $directory := .it.digest | replace ":" "/" -}}
metadata:
  labels:
    {{- with $pod.labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- include "headrace.armLabels" . | nindent 4 }}
    {{- with .root.Values.commonLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    {{- with $pod.annotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    headrace.dev/endpoint: {{ .it.endpoint | quote }}
    headrace.dev/revision-id: {{ .it.revision | quote }}
    headrace.dev/model: {{ .it.model | quote }}
    headrace.dev/settings: {{ .it.settings | sha256sum | trunc 16 | quote }}
spec:
  automountServiceAccountToken: false
  enableServiceLinks: false
  {{- range $field := list "serviceAccountName" "runtimeClassName" "priorityClassName" "nodeSelector" "tolerations" "affinity" }}
  {{- with get $pod $field }}
  {{- dict $field . | toYaml | nindent 2 }}
  {{- end }}
  {{- end }}
  {{- $secrets := list }}
  {{- range .root.Values.image.pullSecrets }}
  {{- $secrets = append $secrets (dict "name" .) }}
  {{- end }}
  {{- with concat $secrets ($pod.imagePullSecrets | default list) | uniq }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  terminationGracePeriodSeconds: {{ add $preStop .it.drainTimeoutSeconds 10 }}
  securityContext:
    {{- include "headrace.podSecurity" .root | nindent 4 }}
    {{- if $pod.nodeCache }}
    fsGroupChangePolicy: OnRootMismatch
    {{- end }}
  topologySpreadConstraints:
    {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
    - maxSkew: 1
      topologyKey: {{ . }}
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "headrace.armSelector" $ | nindent 10 }}
    {{- end }}
  initContainers:
    - name: fetch-model
      {{- include "headrace.replicaCommon" . | nindent 6 }}
      command: [headrace, models, fetch]
      {{- if $pod.modelVolume }}
      args: [{{ .it.digest | quote }}, --from, {{ get (fromJson .it.settings) "path" | quote }}]
      {{- else }}
      args: [{{ .it.digest | quote }}, --artifacts, {{ .root.Values.artifacts.url | quote }}, --output, {{ ternary (printf "/models/%s" $directory) "/models" (not (empty $pod.nodeCache)) }}]
      {{- with .root.Values.artifacts.existingSecret }}
      envFrom:
        - secretRef: {name: {{ . | quote }}}
      {{- end }}
      {{- end }}
      volumeMounts:
        - {name: models, mountPath: /models{{ if $pod.modelVolume }}, readOnly: true{{ end }}}
        - {name: tmp, mountPath: /tmp}
      terminationMessagePolicy: FallbackToLogsOnError
  containers:
    - name: replica
      {{- include "headrace.replicaCommon" . | nindent 6 }}
      command: [tini, --, python, -m, headrace.serving]
      args: [--settings, /etc/headrace/replica.json]
      ports:
        - {name: http, containerPort: 8000, protocol: TCP}
        {{- if include "headrace.servesGrpc" .it }}
        - {name: grpc, containerPort: 8001, protocol: TCP}
        {{- end }}
        - {name: metrics, containerPort: 8002, protocol: TCP}
      volumeMounts:
        - {name: models, mountPath: /models, readOnly: true{{ if $pod.nodeCache }}, subPath: {{ $directory }}{{ end }}}
        - {name: tmp, mountPath: /tmp}
        - {name: settings, mountPath: /etc/headrace, readOnly: true}
        {{- if $pod.shmSize }}
        - {name: shm, mountPath: /dev/shm}
        {{- end }}
      startupProbe:
        httpGet: {path: /v2/health/ready, port: http}
        timeoutSeconds: 2
        periodSeconds: 2
        failureThreshold: 300
      readinessProbe:
        httpGet: {path: /v2/health/ready, port: http}
        timeoutSeconds: 2
        periodSeconds: 2
        failureThreshold: 2
      livenessProbe:
        httpGet: {path: /v2/health/live, port: http}
        timeoutSeconds: 2
        periodSeconds: 10
        failureThreshold: 6
      lifecycle:
        preStop: {sleep: {seconds: {{ $preStop }}}}
      terminationMessagePolicy: FallbackToLogsOnError
  volumes:
    - name: models
      {{- toYaml ($pod.modelVolume | default $pod.nodeCache | default (dict "emptyDir" dict)) | nindent 6 }}
    - {name: tmp, emptyDir: {}}
    - {name: settings, configMap: {name: {{ .settings | quote }}}}
    {{- with $pod.shmSize }}
    - {name: shm, emptyDir: {medium: Memory, sizeLimit: {{ . | quote }}}}
    {{- end }}
{{- end }}

{{- /* JSON {v: base with the additions and changes of patch}, as headrace.core.spec.pod_template.merged: {base, patch, name}. */ -}}
{{- define "headrace.merged" -}}
{{- $base := .base -}}
{{- $merged := .patch -}}
{{- if and (kindIs "map" .base) (kindIs "map" .patch) -}}
{{- $merged = deepCopy .base -}}
{{- range $key, $value := .patch -}}
{{- if hasKey $base $key -}}
{{- $value = index (include "headrace.merged" (dict "base" (get $base $key) "patch" $value "name" $key) | fromJson) "v" -}}
{{- end -}}
{{- $_ := set $merged $key $value -}}
{{- end -}}
{{- else if and (kindIs "slice" .base) (kindIs "slice" .patch) -}}
{{- $keys := dict "volumeMounts" (list "mountPath") "topologySpreadConstraints" (list "topologyKey" "whenUnsatisfiable") -}}
{{- range list "containers" "initContainers" "volumes" "env" "imagePullSecrets" }}{{ $_ := set $keys . (list "name") }}{{ end -}}
{{- $fields := get $keys .name | default list -}}
{{- $merged = .base -}}
{{- range $item := .patch -}}
{{- $isThere := has $item $merged -}}
{{- $items := list -}}
{{- range $own := $merged -}}
{{- $isSame := gt (len $fields) 0 -}}
{{- range $fields }}{{ $isSame = and $isSame (eq (toString (get $own .)) (toString (get $item .))) }}{{ end -}}
{{- if $isSame -}}
{{- $isThere = true -}}
{{- $own = index (include "headrace.merged" (dict "base" $own "patch" $item "name" "") | fromJson) "v" -}}
{{- end -}}
{{- $items = append $items $own -}}
{{- end -}}
{{- $merged = ternary $items (append $items $item) $isThere -}}
{{- end -}}
{{- end -}}
{{ dict "v" $merged | toJson }}
{{- end }}

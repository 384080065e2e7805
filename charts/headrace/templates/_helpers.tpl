{{- define "headrace.instance" -}}
{{- .Values.instance | default .Release.Name | trunc 40 | trimAll "-." -}}
{{- end }}

{{- define "headrace.selector" -}}
app.kubernetes.io/name: headrace
app.kubernetes.io/instance: {{ include "headrace.instance" .root | quote }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- /* Labels of objects that Helm keeps. */ -}}
{{- define "headrace.labels" -}}
{{ include "headrace.selector" . }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "headrace.metadata" -}}
name: {{ .name | quote }}
namespace: {{ .root.Release.Namespace | quote }}
labels:
  {{- include "headrace.labels" . | nindent 2 }}
{{- with .annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- /* A repository that begins with a registry's host is a whole name. There is no default registry: whoever owned it could run code here. */ -}}
{{- define "headrace.image" -}}
{{- $name := .image.repository -}}
{{- if not (regexMatch "^([^/]*[.:][^/]*|localhost)/" $name) -}}
{{- $registry := required "image.registry is empty: push the images to your registry (`make push PREFIX=registry.example/ml`) and set image.registry to the same prefix" .root.Values.image.registry -}}
{{- $name = printf "%s/%s" (trimSuffix "/" $registry) $name -}}
{{- end -}}
{{- if .image.digest -}}
{{ $name }}@{{ .image.digest }}
{{- else -}}
{{ $name }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- define "headrace.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "headrace.podSecurity" -}}
{{- $context := dict "runAsNonRoot" true "seccompProfile" (dict "type" "RuntimeDefault") -}}
{{- if not .Values.platformUid -}}
{{- $context = merge $context (dict "runAsUser" 65532 "runAsGroup" 65532 "fsGroup" 65532) -}}
{{- end -}}
{{- toYaml (merge (dict) (.Values.podSecurityContext | default dict) $context) }}
{{- end }}

{{- define "headrace.containerSecurity" -}}
{{- $context := dict "allowPrivilegeEscalation" false "readOnlyRootFilesystem" true "capabilities" (dict "drop" (list "ALL")) -}}
{{- toYaml (merge (dict) (.Values.securityContext | default dict) $context) }}
{{- end }}

{{- /* Node placement: {root, component, pod: values}. */ -}}
{{- define "headrace.scheduling" -}}
topologySpreadConstraints:
  {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "headrace.selector" $ | nindent 8 }}
        {{- with $.more }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  {{- end }}
{{- with .pod.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .pod.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .pod.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .pod.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- include "headrace.pullSecrets" .root }}
{{- end }}

{{- define "headrace.podMetadata" -}}
labels:
  {{- include "headrace.selector" . | nindent 2 }}
  app.kubernetes.io/managed-by: {{ .root.Release.Service }}
  {{- with .more }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- with .root.Values.commonLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- with .pod.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- $annotations := merge (dict) (.annotations | default dict) (.pod.podAnnotations | default dict) }}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "headrace.serviceAccount" -}}
{{- $own := printf "%s-%s" (include "headrace.instance" .root) .component -}}
{{- if .account.create }}{{ .account.name | default $own }}{{ else }}{{ .account.name | default "default" }}{{ end -}}
{{- end }}

{{- define "headrace.controlHost" -}}
{{ include "headrace.instance" . }}-control.{{ .Release.Namespace }}.svc
{{- end }}

{{- /* Whether Helm creates the certificates of control plane and gateways: no other source is set. */ -}}
{{- define "headrace.makesTls" -}}
{{- $tls := .Values.agentTls -}}
{{- if and (include "headrace.hasControl" .) (not (or $tls.certManager.enabled $tls.controlSecret $tls.gatewaySecret)) }}yes{{ end -}}
{{- end }}

{{- define "headrace.controlTlsSecret" -}}
{{- if or .Values.agentTls.certManager.enabled (include "headrace.makesTls" .) }}{{ include "headrace.instance" . }}-control-tls{{ else }}{{ .Values.agentTls.controlSecret }}{{ end -}}
{{- end }}

{{- define "headrace.gatewayTlsSecret" -}}
{{- if or .Values.agentTls.certManager.enabled (include "headrace.makesTls" .) }}{{ include "headrace.instance" . }}-gateway-tls{{ else }}{{ .Values.agentTls.gatewaySecret }}{{ end -}}
{{- end }}

{{- /* Whether there is a control plane, and gateways that follow it. */ -}}
{{- define "headrace.hasControl" -}}
{{- if and .Values.control.enabled (eq .Values.workloads.mode "driver") }}yes{{ end -}}
{{- end }}
{{- define "headrace.hasGateway" -}}
{{- if and .Values.gateway.enabled (eq .Values.workloads.mode "driver") }}yes{{ end -}}
{{- end }}

{{- /* The scheme of the gateways' ports, by spec.gateway.tls. */ -}}
{{- define "headrace.gatewayScheme" -}}
{{- if (.Values.spec.gateway | default dict).tls }}https{{ else }}http{{ end -}}
{{- end }}

{{- /* The name in the certificate of the gateways. */ -}}
{{- define "headrace.gatewayHostname" -}}
{{ .Values.gateway.tls.hostname | default (printf "%s-gateway.%s.svc" (include "headrace.instance" .) .Release.Namespace) }}
{{- end }}

{{- /* A disruption budget: {root, component, name}. */ -}}
{{- define "headrace.pdb" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  {{- include "headrace.metadata" . | nindent 2 }}
spec:
  maxUnavailable: 1
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "headrace.selector" . | nindent 6 }}
      {{- with .more }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
{{- end }}

{{- /* Whether the workers of some stream have a model to fetch. */ -}}
{{- define "headrace.streamsFetch" -}}
{{- range .Values.streams }}{{ if .models }}yes{{ end }}{{ end -}}
{{- end }}

{{- /* Environment variables without duplicates, which a cluster refuses; the last value counts. {ours, theirs}. */ -}}
{{- define "headrace.env" -}}
{{- $last := dict -}}
{{- $names := list -}}
{{- range concat .ours (.theirs | default list) -}}
{{- if not (hasKey $last .name) }}{{ $names = append $names .name }}{{ end -}}
{{- $_ := set $last .name . -}}
{{- end -}}
{{- range $names }}
- {{ get $last . | toYaml | nindent 2 | trim }}
{{- end }}
{{- end }}

{{- define "headrace.fieldEnv" -}}
name: {{ index . 0 }}
valueFrom: {fieldRef: {fieldPath: {{ index . 1 | quote }}}}
{{- end }}

{{- /* Checks that a schema cannot express. */ -}}
{{- define "headrace.check" -}}
{{- $instance := include "headrace.instance" . -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$" $instance) -}}
{{- fail (printf "the release's name %q begins the names of Services, which take small letters, digits and dashes, and a letter first: set `instance`" .Release.Name) -}}
{{- end -}}
{{- if eq (int .Values.gateway.service.httpPort) (int .Values.gateway.service.grpcPort) -}}
{{- fail "gateway.service: httpPort and grpcPort are the same" -}}
{{- end -}}
{{- with .Values.gateway.autoscaling -}}
{{- if gt (int .minReplicas) (int .maxReplicas) -}}
{{- fail "gateway.autoscaling: minReplicas is more than maxReplicas" -}}
{{- end -}}
{{- end -}}
{{- range $kind := list "jobs" "streams" -}}
{{- $seen := dict -}}
{{- range $i, $one := index $.Values $kind -}}
{{- if hasKey $seen $one.name -}}
{{- fail (printf "%s[%d].name: %q is there twice" $kind $i $one.name) -}}
{{- end -}}
{{- $_ := set $seen $one.name true -}}
{{- with $one.autoscaling -}}
{{- if gt (int .minReplicas) (int .maxReplicas) -}}
{{- fail (printf "%s[%d].autoscaling: minReplicas is more than maxReplicas" $kind $i) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and (or .Values.jobs (include "headrace.streamsFetch" .)) (not .Values.artifacts.url) -}}
{{- fail "artifacts.url: the pods of jobs and streams fetch their models from there" -}}
{{- end -}}
{{- if and (include "headrace.hasControl" .) (not (include "headrace.controlTlsSecret" .)) -}}
{{- fail "agentTls.controlSecret: the control plane needs a certificate to show the gateways: name it beside agentTls.gatewaySecret, set agentTls.certManager.enabled, or name neither" -}}
{{- end -}}
{{- if and (include "headrace.hasGateway" .) (not (include "headrace.gatewayTlsSecret" .)) -}}
{{- fail "agentTls.gatewaySecret: the gateways need a certificate to show the control plane, or set agentTls.certManager.enabled" -}}
{{- end -}}
{{- if and (include "headrace.hasControl" .) .Values.spec.endpoints (not .Values.artifacts.url) -}}
{{- fail "artifacts.url: pods fetch their models from there; give the store that `headrace models push` puts them into" -}}
{{- end -}}
{{- if and (eq .Values.workloads.mode "static") .Values.workloads.versions (not .Values.artifacts.url) -}}
{{- fail "artifacts.url: pods fetch their models from there" -}}
{{- end -}}
{{- if eq .Values.workloads.mode "static" -}}
{{- include "headrace.checkVersions" . -}}
{{- end -}}
{{- end }}

{{- define "headrace.checkVersions" -}}
{{- $weighted := dict -}}
{{- $seen := dict -}}
{{- range $i, $it := .Values.workloads.versions -}}
{{- $place := printf "workloads.versions[%d]" $i -}}
{{- $settings := fromJson .settings -}}
{{- if hasKey $settings "Error" -}}
{{- fail (printf "%s.settings: is no object of JSON: take what `headrace export helm --mode static` writes" $place) -}}
{{- end -}}
{{- if and $settings.grpc_port (ne (int $settings.grpc_port) 8001) -}}
{{- fail (printf "%s.settings: grpc_port is %v, and Services, routes and policies lead to 8001" $place $settings.grpc_port) -}}
{{- end -}}
{{- $name := include "headrace.armName" (dict "instance" (include "headrace.instance" $) "it" .) -}}
{{- if hasKey $seen $name -}}
{{- fail (printf "%s: its objects would be called %s, as those of %s: each version needs an `arm` of its own" $place $name (get $seen $name)) -}}
{{- end -}}
{{- $_ := set $seen $name $place -}}
{{- if .weight -}}{{- $_ := set $weighted .endpoint (add 1 (get $weighted .endpoint | default 0)) -}}{{- end -}}
{{- with .autoscaling -}}
{{- if gt (int .minReplicas) (int .maxReplicas) -}}
{{- fail (printf "%s.autoscaling: minReplicas is more than maxReplicas" $place) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if eq .Values.ingress.type "gateway-api" -}}
{{- range $endpoint, $count := $weighted -}}
{{- if gt (int $count) 16 -}}
{{- fail (printf "workloads.versions: %d versions of %s have a weight, and a route splits between 16: end those with the smallest" $count $endpoint) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "headrace.envFrom" -}}
{{- if or .Values.artifacts.existingSecret .Values.environmentSecret }}
envFrom:
  {{- with .Values.artifacts.existingSecret }}
  - secretRef: {name: {{ . | quote }}}
  {{- end }}
  {{- with .Values.environmentSecret }}
  - secretRef: {name: {{ . | quote }}}
  {{- end }}
{{- end }}
{{- end }}

{{- define "headrace.dns" -}}
- to:
    {{- toYaml .Values.networkPolicy.dns.to | nindent 4 }}
  ports:
    {{- range .Values.networkPolicy.dns.ports }}
    - {protocol: UDP, port: {{ . }}}
    - {protocol: TCP, port: {{ . }}}
    {{- end }}
{{- end }}

{{- /* An egress rule for {to, ports}; without `to` for all destinations. */ -}}
{{- define "headrace.egress" -}}
- ports:
    {{- range .ports }}
    - {protocol: TCP, port: {{ . }}}
    {{- end }}
  {{- with .to }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{- define "headrace.routeHead" -}}
parentRefs:
  {{- toYaml .Values.ingress.parentRefs | nindent 2 }}
{{- with .Values.ingress.hostnames }}
hostnames:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- /* As headrace.control.kubernetes.label_value: the text itself if it is a valid label, else a readable part and a digest. */ -}}
{{- define "headrace.labelValue" -}}
{{- if regexMatch "^[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$" . -}}
{{ . }}
{{- else -}}
{{- $digest := sha256sum . | trunc 8 -}}
{{- $readable := regexReplaceAll "[^A-Za-z0-9_.-]" . "-" | trunc 54 | trimAll "-_." -}}
{{- if $readable }}{{ $readable }}-{{ end }}{{ $digest }}
{{- end -}}
{{- end }}

{{- /* Name of an arm's objects. It stays when the arm gets another version, so that its Deployment rolls: {instance, it}. */ -}}
{{- define "headrace.armName" -}}
{{- $suffix := printf "-%s-%d" (sha256sum .it.endpoint | trunc 8) (int .it.arm) -}}
{{- $stem := printf "%s-%s" .instance .it.endpoint | lower -}}
{{- $stem = regexReplaceAll "[^a-z0-9]+" $stem "-" | trunc (int (sub 57 (len $suffix))) | trimAll "-" -}}
{{ $stem }}{{ $suffix }}
{{- end }}

{{- /* As headrace.core.gateways.pre_stop_s: the lag of a gateway plus the time of a notice. */ -}}
{{- define "headrace.preStopSeconds" -}}
{{ add .Values.gateway.maxBehindSeconds 5 }}
{{- end }}

{{- /* Whether the replicas of a version serve gRPC too: if their settings have a port for it. */ -}}
{{- define "headrace.servesGrpc" -}}
{{- if get (fromJson .settings) "grpc_port" }}yes{{ end -}}
{{- end }}

{{- /* As INTERNAL_HEADERS of headrace.core.headers: gateways use them to identify callers to replicas, so callers must not set them. */ -}}
{{- define "headrace.noHeadersOfOurs" -}}
- type: RequestHeaderModifier
  requestHeaderModifier:
    remove:
      - x-headrace-split
      - x-headrace-weights
      - x-headrace-unit
      - x-headrace-shadow
      - x-headrace-pair
      - x-headrace-named
      - x-headrace-version
      - x-headrace-caller
      - x-headrace-credential
      - x-headrace-tier
      - x-headrace-issuer
      - x-headrace-priority
      - x-headrace-slo-s
      - x-headrace-want
      - x-headrace-lease
{{- end }}

{{- /* Destination of requests without a version: {instance, versions, port}. */ -}}
{{- define "headrace.split" -}}
{{- $instance := .instance -}}
{{- $port := .port -}}
{{- $weighted := list -}}
{{- range .versions }}{{ if .weight }}{{ $weighted = append $weighted . }}{{ end }}{{ end -}}
backendRefs:
  {{- range $weighted | default .versions }}
  - name: {{ include "headrace.armName" (dict "instance" $instance "it" .) | quote }}
    port: {{ $port }}
    weight: {{ .weight }}
  {{- end }}
{{- end }}

{{- /* Requests that name a version, or, if it is empty, requests without one: {instance, endpoint, version, versions, timeout}. */ -}}
{{- define "headrace.httpRule" -}}
matches:
  {{- if .version }}
  - path: {type: PathPrefix, value: /v2/models/{{ .endpoint }}/versions/{{ .version }}}
  {{- else }}
  - path: {type: PathPrefix, value: /v2/models/{{ .endpoint }}}
  - path: {type: PathPrefix, value: /v1/models/{{ .endpoint }}}
  - path: {type: Exact, value: "/v1/models/{{ .endpoint }}:predict"}
  {{- end }}
filters:
  {{- include "headrace.noHeadersOfOurs" . | nindent 2 }}
{{ include "headrace.backends" (merge (dict "port" 8000) .) }}
timeouts: {request: {{ .timeout }}}
{{- end }}

{{- /* The same for gRPC. No route reads a message: with several endpoints, callers name theirs in the metadata. */ -}}
{{- define "headrace.grpcRule" -}}
matches:
  - method: {type: Exact, service: inference.GRPCInferenceService}
    {{- if or .version (not .alone) }}
    headers:
      {{- if not .alone }}
      - {type: Exact, name: x-model, value: {{ .endpoint | quote }}}
      {{- end }}
      {{- with .version }}
      - {type: Exact, name: x-model-version, value: {{ . | quote }}}
      {{- end }}
    {{- end }}
filters:
  {{- include "headrace.noHeadersOfOurs" . | nindent 2 }}
{{ include "headrace.backends" (merge (dict "port" 8001) .) }}
{{- end }}

{{- /* One version, or the split of all: {instance, version, versions, port}. */ -}}
{{- define "headrace.backends" -}}
{{- if .version -}}
backendRefs:
  - name: {{ include "headrace.armName" (dict "instance" .instance "it" (first .versions)) | quote }}
    port: {{ .port }}
{{- else -}}
{{ include "headrace.split" . }}
{{- end -}}
{{- end }}

{{- /* Routes before the replicas of one endpoint, with at most 16 rules each: {root, kind, endpoint, rules}. */ -}}
{{- define "headrace.endpointRoutes" -}}
{{- $instance := include "headrace.instance" .root -}}
{{- $it := . -}}
{{- $label := dict "headrace.dev/endpoint" (include "headrace.labelValue" .endpoint) -}}
{{- $name := include "headrace.routeName" (dict "instance" $instance "endpoint" .endpoint) -}}
{{- range $i, $rules := chunk 16 .rules }}
---
apiVersion: gateway.networking.k8s.io/v1
kind: {{ $it.kind }}
metadata:
  {{- $called := ternary (printf "%s-%d" $name (add $i 1)) $name (gt $i 0) }}
  {{- include "headrace.metadata" (dict "root" $it.root "component" "replica" "name" $called "annotations" $it.root.Values.ingress.annotations) | nindent 2 }}
    {{- toYaml $label | nindent 4 }}
spec:
  {{- include "headrace.routeHead" $it.root | nindent 2 }}
  rules:
    {{- range $rules }}
    - {{ . | nindent 6 | trim }}
    {{- end }}
{{- end }}
{{- end }}

{{- define "headrace.routeName" -}}
{{- $stem := regexReplaceAll "[^a-z0-9]+" (printf "%s-%s" .instance .endpoint | lower) "-" -}}
{{ $stem | trunc 54 | trimAll "-" }}-{{ sha256sum .endpoint | trunc 8 }}
{{- end }}

{{- define "headrace.armSelector" -}}
app.kubernetes.io/name: headrace
app.kubernetes.io/instance: {{ include "headrace.instance" .root | quote }}
app.kubernetes.io/component: replica
headrace.dev/endpoint: {{ include "headrace.labelValue" .it.endpoint | quote }}
headrace.dev/arm: {{ .it.arm | quote }}
{{- end }}

{{- define "headrace.armLabels" -}}
{{ include "headrace.armSelector" . }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
headrace.dev/revision: {{ .it.revision | trunc 12 | quote }}
headrace.dev/version: {{ include "headrace.labelValue" .it.version | quote }}
{{- end }}

{{- define "headrace.armMetadata" -}}
name: {{ .name | quote }}
namespace: {{ .root.Release.Namespace | quote }}
labels:
  {{- include "headrace.armLabels" . | nindent 2 }}
  {{- with .root.Values.commonLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{- /* Common part of the containers that fetch and serve a model. */ -}}
{{- define "headrace.replicaCommon" -}}
{{- $pod := .it.pod | default dict -}}
image: {{ $pod.image | default (include "headrace.image" (dict "root" .root "image" (dict "repository" ($pod.imageName | default "replica")))) | quote }}
imagePullPolicy: {{ $pod.imagePullPolicy | default .root.Values.image.pullPolicy }}
securityContext:
  {{- include "headrace.containerSecurity" .root | nindent 2 }}
resources:
  {{- toYaml $pod.resources | nindent 2 }}
env:
  {{- include "headrace.env" (dict "ours" (list (dict "name" "HOME" "value" "/tmp")) "theirs" $pod.env) | nindent 2 }}
{{- end }}

{{- /* Common part of the containers of jobs and streams: {root, resources, runId, member}. */ -}}
{{- define "headrace.workerCommon" -}}
image: {{ include "headrace.image" (dict "root" .root "image" .root.Values.workers.image) | quote }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
securityContext:
  {{- include "headrace.containerSecurity" .root | nindent 2 }}
resources:
  {{- toYaml (.resources | default .root.Values.workers.resources) | nindent 2 }}
env:
  {{- $env := list (dict "name" "HOME" "value" "/tmp") }}
  {{- if .runId }}
  # The same for every attempt of a run, so the next one continues.
  {{- $env = append $env (include "headrace.fieldEnv" (list "RUN_ID" "metadata.labels['batch.kubernetes.io/job-name']") | fromYaml) }}
  {{- end }}
  {{- if .member }}
  {{- $env = append $env (include "headrace.fieldEnv" (list "POD_NAME" "metadata.name") | fromYaml) }}
  {{- end }}
  {{- include "headrace.env" (dict "ours" $env "theirs" .root.Values.workers.env) | nindent 2 }}
{{- include "headrace.envFrom" .root }}
{{- end }}

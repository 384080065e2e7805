{{- define "headrace.instance" -}}
{{- .Values.instance | default .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{- define "headrace.selector" -}}
app.kubernetes.io/name: headrace
app.kubernetes.io/instance: {{ include "headrace.instance" .root }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- /* Of objects that Helm keeps. */ -}}
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
name: {{ .name }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "headrace.labels" . | nindent 2 }}
{{- with .annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "headrace.image" -}}
{{- $name := .image.repository -}}
{{- with .root.Values.image.registry }}{{ $name = printf "%s/%s" (trimSuffix "/" .) $name }}{{ end -}}
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
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "headrace.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "headrace.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- /* On which nodes: {root, component, pod: values}. */ -}}
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
priorityClassName: {{ . }}
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
{{- $annotations := merge (dict) (.annotations | default dict) .pod.podAnnotations }}
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

{{- /* Whether Helm makes the certificates of control plane and gateways: nobody else does. */ -}}
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

{{- /* What schemas cannot say. */ -}}
{{- define "headrace.check" -}}
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
{{- end }}

{{- define "headrace.envFrom" -}}
{{- if or .Values.artifacts.existingSecret .Values.environmentSecret }}
envFrom:
  {{- with .Values.artifacts.existingSecret }}
  - secretRef: {name: {{ . }}}
  {{- end }}
  {{- with .Values.environmentSecret }}
  - secretRef: {name: {{ . }}}
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

{{- /* A rule to {to, ports}; without `to` to anywhere. */ -}}
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

{{- /* As headrace.control.kubernetes.label_value: itself if it may be one, else readable and a digest. */ -}}
{{- define "headrace.labelValue" -}}
{{- if regexMatch "^[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$" . -}}
{{ . }}
{{- else -}}
{{- $digest := sha256sum . | trunc 8 -}}
{{- $readable := regexReplaceAll "[^A-Za-z0-9_.-]" . "-" | trunc 54 | trimAll "-_." -}}
{{- if $readable }}{{ $readable }}-{{ end }}{{ $digest }}
{{- end -}}
{{- end }}

{{- /* As headrace.control.kubernetes.name_of: cut where there is no room, before the revision, so that pods begin with it. */ -}}
{{- define "headrace.revisionName" -}}
{{- $suffix := printf "-%s-%s" .it.version (.it.revision | trunc 8) -}}
{{- $stem := printf "%s-%s" .instance .it.endpoint | lower -}}
{{- $stem = regexReplaceAll "[^a-z0-9]+" $stem "-" | trunc (int (sub 57 (len $suffix))) | trimAll "-" -}}
{{ $stem }}{{ $suffix }}
{{- end }}

{{- define "headrace.routeName" -}}
{{- $stem := regexReplaceAll "[^a-z0-9]+" (printf "%s-%s" .instance .endpoint | lower) "-" -}}
{{ $stem | trunc 54 | trimAll "-" }}-{{ sha256sum .endpoint | trunc 8 }}
{{- end }}

{{- define "headrace.revisionSelector" -}}
app.kubernetes.io/name: headrace
app.kubernetes.io/instance: {{ include "headrace.instance" .root }}
app.kubernetes.io/component: replica
headrace.dev/revision: {{ .it.revision | trunc 12 | quote }}
{{- end }}

{{- define "headrace.revisionLabels" -}}
{{ include "headrace.revisionSelector" . }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
headrace.dev/endpoint: {{ include "headrace.labelValue" .it.endpoint | quote }}
headrace.dev/version: {{ include "headrace.labelValue" .it.version | quote }}
{{- end }}

{{- define "headrace.revisionMetadata" -}}
name: {{ .name }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "headrace.revisionLabels" . | nindent 2 }}
  {{- with .root.Values.commonLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{- /* What the container that fetches a model and the one that serves it have in common. */ -}}
{{- define "headrace.replicaCommon" -}}
{{- $pod := .it.pod | default dict -}}
image: {{ $pod.image | default (include "headrace.image" (dict "root" .root "image" (dict "repository" "headrace/replica"))) }}
imagePullPolicy: {{ $pod.imagePullPolicy | default .root.Values.image.pullPolicy }}
securityContext:
  {{- include "headrace.containerSecurity" . | nindent 2 }}
resources:
  {{- toYaml $pod.resources | nindent 2 }}
env:
  - {name: HOME, value: /tmp}
  {{- with $pod.env }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .root.Values.artifacts.existingSecret }}
envFrom:
  - secretRef: {name: {{ . }}}
{{- end }}
{{- end }}

{{- /* What containers of jobs and streams have in common: {root, resources, runId, member}. */ -}}
{{- define "headrace.workerCommon" -}}
image: {{ include "headrace.image" (dict "root" .root "image" .root.Values.workers.image) }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
securityContext:
  {{- include "headrace.containerSecurity" . | nindent 2 }}
resources:
  {{- toYaml (.resources | default .root.Values.workers.resources) | nindent 2 }}
env:
  - {name: HOME, value: /tmp}
  {{- if .runId }}
  # The same for every try of a run, so that the next goes on.
  - name: RUN_ID
    valueFrom: {fieldRef: {fieldPath: "metadata.labels['batch.kubernetes.io/job-name']"}}
  {{- end }}
  {{- if .member }}
  - name: POD_NAME
    valueFrom: {fieldRef: {fieldPath: metadata.name}}
  {{- end }}
  {{- with .root.Values.workers.env }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- include "headrace.envFrom" .root }}
{{- end }}

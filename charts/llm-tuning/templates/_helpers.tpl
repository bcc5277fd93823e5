{{/* The name of everything: fixed, because training pods reach the operator under it. */}}
{{- define "llm-tuning.name" -}}llm-tuning-operator{{- end }}

{{- define "llm-tuning.selector" -}}
app.kubernetes.io/name: {{ include "llm-tuning.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Of everything but the pod of `helm test`, which is not the operator. */}}
{{- define "llm-tuning.labels" -}}
{{ include "llm-tuning.selector" . }}
{{ include "llm-tuning.commonLabels" . }}
{{- end }}

{{- define "llm-tuning.testSelector" -}}
app.kubernetes.io/name: {{ include "llm-tuning.name" . }}-test
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "llm-tuning.commonLabels" -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* The watched namespaces, joined by commas; * alone is the whole cluster. */}}
{{- define "llm-tuning.watchNamespaces" -}}
{{- join "," (.Values.watchNamespaces | default (list .Release.Namespace)) }}
{{- end }}

{{/* Something where the whole cluster is watched, nothing where namespaces are. */}}
{{- define "llm-tuning.everywhere" -}}
{{- if has "*" .Values.watchNamespaces }}yes{{ end }}
{{- end }}

{{- define "llm-tuning.progressURL" -}}
https://{{ include "llm-tuning.name" . }}.{{ .Release.Namespace }}.svc:8443
{{- end }}

{{/* The Secret with ca.crt, tls.crt and tls.key of the progress server: the operator makes the one, cert-manager the other. */}}
{{- define "llm-tuning.tlsSecret" -}}
{{ include "llm-tuning.name" . }}-{{ if .Values.tls.certManager.enabled }}certificate{{ else }}tls{{ end }}
{{- end }}

{{- define "llm-tuning.operatorImage" -}}
{{ required "set images.operator: the image built from the Dockerfile, where the nodes can pull it; helm upgrade keeps what was set before only with --reset-then-reuse-values" .Values.images.operator }}
{{- end }}

{{/* `defaults` as the operator reads it: what is empty is left out. */}}
{{- define "llm-tuning.defaults" -}}
{{- $tracking := dict }}
{{- with .Values.defaults.tracking.uri }}{{ $_ := set $tracking "uri" . }}{{ end }}
{{- with .Values.defaults.tracking.credentialsSecret }}{{ $_ := set $tracking "credentialsSecret" (dict "name" .) }}{{ end }}
{{- $gpu := dict }}
{{- with .Values.defaults.gpu.nodeSelector }}{{ $_ := set $gpu "nodeSelector" . }}{{ end }}
{{- with .Values.defaults.gpu.tolerations }}{{ $_ := set $gpu "tolerations" . }}{{ end }}
{{- with .Values.defaults.gpu.runtimeClassName }}{{ $_ := set $gpu "runtimeClassName" . }}{{ end }}
{{- $defaults := dict "tracking" $tracking "gpu" $gpu }}
{{- with .Values.defaults.queueName }}{{ $_ := set $defaults "queueName" . }}{{ end }}
{{- toJson $defaults }}
{{- end }}

{{/* Where the chart's own pods run, and who they are: nobody. */}}
{{- define "llm-tuning.pod" -}}
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  {{- if not .Values.clusterAssignsUser }}
  runAsUser: 65532
  runAsGroup: 65532
  {{- end }}
  seccompProfile:
    type: RuntimeDefault
{{- with .Values.images.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "llm-tuning.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

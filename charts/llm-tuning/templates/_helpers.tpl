{{/* The name of everything: fixed, because training pods reach the operator under it. */}}
{{- define "llm-tuning.name" -}}llm-tuning-operator{{- end }}

{{- define "llm-tuning.selector" -}}
app.kubernetes.io/name: {{ include "llm-tuning.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "llm-tuning.labels" -}}
{{ include "llm-tuning.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* The watched namespaces, joined by commas. */}}
{{- define "llm-tuning.watchNamespaces" -}}
{{- join "," (.Values.watchNamespaces | default (list .Release.Namespace)) }}
{{- end }}

{{/* The name of everything: fixed, so that base_url follows from the namespace. A namespace has one. */}}
{{- define "api.name" -}}llm-tuning-api{{- end }}

{{- define "api.selector" -}}
app.kubernetes.io/name: {{ include "api.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "api.labels" -}}
{{ include "api.selector" . }}
{{ include "api.commonLabels" . }}
{{- end }}

{{/* Of what `helm test` makes, which is not the API. */}}
{{- define "api.testName" -}}{{ include "api.name" . }}-test{{- end }}

{{- define "api.testSelector" -}}
app.kubernetes.io/name: {{ include "api.testName" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "api.commonLabels" -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: llm-tuning
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "api.image" -}}
{{ required "set image.name: the operator's image, where the nodes can pull it; helm upgrade keeps what was set before only with --reset-then-reuse-values" .Values.image.name }}
{{- end }}

{{- define "api.claim" -}}
{{ required "set claimName: the PersistentVolumeClaim of this namespace with base/, datasets/ and models/" .Values.claimName }}
{{- end }}

{{/* All that the API is told, as its file of settings; what is empty is left out. JSON: of whole numbers YAML might make 1e+06. */}}
{{- define "api.settings" -}}
{{- if not .Values.bases }}{{ fail "set bases: the base models by the names that scripts use, such as {gpt-4.1-mini: {uri: hf://Qwen/Qwen3-8B}}" }}{{ end }}
{{- $organization := .Values.organization | default (.Release.Namespace | trunc 24 | trimSuffix "-") }}
{{- range $name, $base := .Values.bases }}
{{- if gt (add (len $name) (len $organization)) 50 }}{{ fail (printf "bases.%s: the name and organization (%s) must have at most 50 characters together; shorten one of them" $name $organization) }}{{ end }}
{{- end }}
{{- $limits := ternary .Values.limits (omit .Values.limits "uploadsPerDay") (not (empty .Values.limits.uploadsPerDay)) }}
{{- $settings := dict
  "organization" $organization
  "claimName" (include "api.claim" .)
  "bases" .Values.bases
  "limits" $limits
  "waitSeconds" .Values.waitSeconds
  "deleteAdapters" .Values.deleteAdapters
}}
{{- with .Values.apiKeySecret }}{{ $_ := set $settings "apiKeySecret" . }}{{ end }}
{{- toPrettyJson $settings }}
{{- end }}

{{/* Secrets with keys: those of the values, and the one that lives as long as a `helm test`. */}}
{{- define "api.keySecrets" -}}
{{ append .Values.keys.secrets (include "api.testName" .) | toJson }}
{{- end }}

{{/* Where the chart's pods run, and who they are. */}}
{{- define "api.pod" -}}
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  {{- if not .Values.clusterAssignsUser }}
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  {{- end }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with .Values.image.pullSecrets }}
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

{{- define "api.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

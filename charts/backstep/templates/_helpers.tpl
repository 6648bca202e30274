{{- define "backstep.labels" -}}
app.kubernetes.io/name: backstep
app.kubernetes.io/part-of: backstep
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "backstep.selector" -}}
app.kubernetes.io/name: backstep
app.kubernetes.io/component: operator
{{- end }}

{{- define "backstep.username" -}}
system:serviceaccount:{{ .Release.Namespace }}:{{ .Values.serviceAccount.name }}
{{- end }}

{{- define "backstep.systemControllers" -}}
{{- $quoted := list }}
{{- range .Values.systemControllers }}{{ $quoted = append $quoted (squote .) }}{{ end }}
{{- join ", " $quoted }}
{{- end }}

{{- define "backstep.store" -}}
{{- if eq .Values.store.type "Filesystem" }}file://{{ .Values.store.filesystem.path }}{{ else }}secrets{{ end }}
{{- end }}

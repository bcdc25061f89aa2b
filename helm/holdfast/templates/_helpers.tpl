{{/* Names are fixed: edgeadm knows them, and there is one Holdfast a cluster. */}}
{{- define "holdfast.labels" -}}
app.kubernetes.io/name: cloudcore
app.kubernetes.io/part-of: holdfast
{{- end }}

{{/* What `gemline certificates` runs as and in: RBAC_VERBS of services/gemline/rollout/secrets.py. */}}

{{/* An account that may keep the two Secrets of the internal certificate. Takes {root, name, part, makes, annotations}. */}}
{{- define "gemline.certificateAccess" -}}
{{- $root := .root -}}
{{- $secret := include "gemline.tlsSecret" $root -}}
{{- $metadata := printf "name: %s\nlabels:\n  %s" .name (include "gemline.labels" . | nindent 2 | trim) -}}
{{- with .annotations }}
{{- $metadata = printf "%s\nannotations: %s" $metadata . -}}
{{- end -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  {{- $metadata | nindent 2 }}
automountServiceAccountToken: false
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  {{- $metadata | nindent 2 }}
rules:
- {apiGroups: [""], resources: [secrets], resourceNames: [{{ $secret }}, {{ $secret }}-ca], verbs: [get, patch]}
{{- if .makes }}
- {apiGroups: [""], resources: [secrets], verbs: [create]}
{{- end }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  {{- $metadata | nindent 2 }}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: {{ .name }}}
subjects:
- {kind: ServiceAccount, name: {{ .name }}, namespace: {{ $root.Release.Namespace }}}
{{- if $root.Values.networkPolicy.enabled }}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  {{- $metadata | nindent 2 }}
spec:
  podSelector:
    matchLabels:
      {{- include "gemline.selector" (dict "root" $root "part" .part) | nindent 6 }}
  policyTypes: [Ingress, Egress]
  egress:
  - to:
    - ipBlock: {cidr: {{ $root.Values.networkPolicy.apiServerCidr }}}
    ports:
    - {port: 443, protocol: TCP}
    - {port: 6443, protocol: TCP}
{{- end }}
{{- end -}}

{{/* The spec of a job. Takes {root, account, part}. */}}
{{- define "gemline.certificateJob" -}}
backoffLimit: 4
activeDeadlineSeconds: 300
template:
  metadata:
    labels:
      {{- include "gemline.podLabels" (dict "root" .root "part" .part) | nindent 6 }}
  spec:
    restartPolicy: Never
    automountServiceAccountToken: true
    serviceAccountName: {{ .account }}
    enableServiceLinks: false
    securityContext:
      {{- include "gemline.podSecurity" (dict "uid" 10001) | nindent 6 }}
    {{- include "gemline.pullSecrets" .root | nindent 4 }}
    {{- with .root.Values.gateway.nodeSelector }}
    nodeSelector:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    {{- with .root.Values.gateway.tolerations }}
    tolerations:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    containers:
    - name: certificates
      image: {{ include "gemline.image" (dict "root" .root "name" "gateway") }}
      imagePullPolicy: {{ .root.Values.images.gateway.pullPolicy }}
      args: [certificates, {{ include "gemline.tlsSecret" .root }}, --namespace={{ .root.Release.Namespace }}]
      env:
      - {name: HOME, value: /tmp}
      resources:
        requests: {cpu: 100m, memory: 128Mi}
        limits: {memory: 256Mi}
      securityContext:
        {{- include "gemline.containerSecurity" .root | nindent 8 }}
      volumeMounts:
      - {name: tmp, mountPath: /tmp}
    volumes:
    - name: tmp
      emptyDir: {sizeLimit: 16Mi}
{{- end -}}

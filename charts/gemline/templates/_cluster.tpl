{{/* What the cluster itself must have, asked before anything is applied. `helm template` has no cluster: nothing is asked. */}}

{{- define "gemline.checkCluster" -}}
{{- if .Values.checkSecrets -}}
{{- include "gemline.checkSecrets" . -}}
{{- end -}}
{{- include "gemline.checkStorage" . -}}
{{- end -}}

{{/* Named as the value, as who may not list Secrets reads this name in Helm's error. */}}
{{- define "gemline.checkSecrets" -}}
{{/* A list is empty without a cluster, and has items with one. Helm itself lists Secrets, where it keeps its releases in them. */}}
{{- $found := lookup "v1" "Secret" .Release.Namespace "" -}}
{{- if hasKey $found "items" -}}
{{- $there := dict -}}
{{- range $found.items -}}
{{- $_ := set $there .metadata.name (.data | default dict) -}}
{{- end -}}
{{- $at := dict "there" $there "namespace" .Release.Namespace -}}
{{- $redis := .Values.redis -}}
{{- include "gemline.checkSecret" (merge (dict "at" "redis.existingSecret" "name" $redis.existingSecret "keys" (list $redis.passwordKey)) $at) -}}
{{- $gateway := .Values.gateway -}}
{{- include "gemline.checkSecret" (merge (dict "at" "gateway.tls.existingSecret" "name" $gateway.tls.existingSecret "keys" (list "tls.crt" "tls.key")) $at) -}}
{{- include "gemline.checkSecret" (merge (dict "at" "gateway.adminKey.existingSecret" "name" $gateway.adminKey.existingSecret "keys" (list $gateway.adminKey.key)) $at) -}}
{{- $sessions := $gateway.sessions -}}
{{- include "gemline.checkSecret" (merge (dict "at" "gateway.sessions.existingSecret" "name" $sessions.existingSecret "keys" (list $sessions.encryptionKey $sessions.nameSecret)) $at) -}}
{{- if eq .Values.internalTls.mode "existingSecret" -}}
{{- include "gemline.checkSecret" (merge (dict "at" "internalTls.existingSecret" "name" .Values.internalTls.existingSecret "keys" (list "tls.crt" "tls.key" "ca.crt")) $at) -}}
{{- end -}}
{{- range $index, $name := .Values.imagePullSecrets -}}
{{- include "gemline.checkSecret" (merge (dict "at" (printf "imagePullSecrets[%d]" $index) "name" $name "keys" list) $at) -}}
{{- end -}}
{{- range $index, $model := .Values.models -}}
{{- with $model.hubTokenSecret -}}
{{- if hasPrefix "hf://" $model.source -}}
{{- include "gemline.checkSecret" (merge (dict "at" (printf "models[%d].hubTokenSecret" $index) "name" .name "keys" (list .key)) $at) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Takes {at, name, keys, there, namespace}; an empty name is for whoever needs none. */}}
{{- define "gemline.checkSecret" -}}
{{- if .name -}}
{{- if not (hasKey .there .name) -}}
{{- fail (printf "%s: namespace %s has no Secret %s; make it first%s" .at .namespace .name (.keys | empty | ternary "" (printf ", with %s" (.keys | join ", ")))) -}}
{{- end -}}
{{- $data := get .there .name -}}
{{- $args := . -}}
{{- range $key := .keys -}}
{{- if not (hasKey $data $key) -}}
{{- fail (printf "%s: Secret %s of namespace %s has no key %s, but %s" $args.at $args.name $args.namespace $key (keys $data | sortAlpha | join ", " | default "none at all")) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Kubernetes changes no claim of a StatefulSet that is there; without this an upgrade would stop half-way. */}}
{{- define "gemline.checkStorage" -}}
{{- if .Values.redis.internal -}}
{{- $name := printf "%s-redis" (include "gemline.fullname" .) -}}
{{- with lookup "apps/v1" "StatefulSet" .Release.Namespace $name -}}
{{- $claim := (first .spec.volumeClaimTemplates).spec -}}
{{- $wanted := $.Values.redis.storage -}}
{{- if ne (include "gemline.quantity" $claim.resources.requests.storage) (include "gemline.quantity" $wanted.size) -}}
{{- fail (printf "redis.storage.size: is %s, was %s, and Kubernetes changes no claim of a StatefulSet: grow the claim data-%s-0 itself, then delete the StatefulSet with --cascade=orphan" $wanted.size $claim.resources.requests.storage $name) -}}
{{- end -}}
{{- if and $wanted.storageClassName (ne ($claim.storageClassName | default "") $wanted.storageClassName) -}}
{{- fail (printf "redis.storage.storageClassName: is %s, was %s, and Kubernetes changes no claim of a StatefulSet" $wanted.storageClassName ($claim.storageClassName | default "the cluster's own")) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* A quantity as a plain number: an API server writes 1024Mi as 1Gi. */}}
{{- define "gemline.quantity" -}}
{{- $number := regexFind "^[0-9.]+" (toString .) -}}
{{- $factors := dict "" 1 "m" 0.001 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "E" 1e18 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 "Pi" 1125899906842624 "Ei" 1152921504606846976 -}}
{{- mulf (float64 $number) (get $factors (trimPrefix $number (toString .))) | printf "%.3f" -}}
{{- end -}}

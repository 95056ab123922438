{{/* Whether a model fits its GPUs: the arithmetic of `gemline plan` over files/sizes.json. A worker does it again at start. */}}

{{- define "gemline.checkFits" -}}
{{- $model := .model -}}
{{- if not $model.size -}}
{{- fail (printf "%s: size: is not there; with a gpu it says what must fit: 2b, 9b or 27b" .at) -}}
{{- end -}}
{{- if not (hasKey .root.Values.gpus $model.gpu) -}}
{{- fail (printf "%s: gpu: %s is not among gpus: %s" .at $model.gpu (keys .root.Values.gpus | sortAlpha | join ", ")) -}}
{{- end -}}
{{- $sizes := .root.Files.Get "files/sizes.json" | fromJson -}}
{{- $wanted := int ($model.minSequences | default 1) -}}
{{- $asked := dict "root" .root "sizes" $sizes "model" $model "gpu" $model.gpu "quantization" $model.quantization "degree" (int $model.tensorParallel) -}}
{{- $room := include "gemline.room" $asked | fromJson -}}
{{- if lt (int $room.sequences) $wanted -}}
{{- $would := list -}}
{{- range $quantization := list "none" "fp8" "int8" "int4" -}}
{{- range $degree := list 1 2 4 8 -}}
{{- $other := include "gemline.room" (merge (dict "quantization" $quantization "degree" $degree) $asked) | fromJson -}}
{{- if ge (int $other.sequences) $wanted -}}
{{- $would = append $would (printf "%s on %d x %s (%d)" $quantization $degree $model.gpu (int $other.sequences)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $gpu := keys .root.Values.gpus | sortAlpha -}}
{{- $other := include "gemline.room" (merge (dict "gpu" $gpu) $asked) | fromJson -}}
{{- if and (ne $gpu $model.gpu) (ge (int $other.sequences) $wanted) -}}
{{- $would = append $would (printf "%s on %d x %s (%d)" $model.quantization (int $model.tensorParallel) $gpu (int $other.sequences)) -}}
{{- end -}}
{{- end -}}
{{- fail (printf "%s: %s with dtype %s and quantization %s takes %s of weights on each of %d x %s, which has %s; beside %s for everything else that leaves room for %d sequences of %d tokens, %s each, and minSequences asks for %d. Enough have: %s" .at $model.size $model.dtype $model.quantization $room.weights (int $model.tensorParallel) $model.gpu $room.memory $room.reserved (int $room.sequences) (int $sizes.context) $room.each $wanted ($would | join ", " | default "none of these GPUs")) -}}
{{- end -}}
{{- end -}}

{{/* What is left of a GPU, as JSON. Takes {root, sizes, model, gpu, quantization, degree}. dtype auto counts as bfloat16. */}}
{{- define "gemline.room" -}}
{{- $own := eq .model.dtype "float32" | ternary "f32" "bf16" -}}
{{- $rank := index .sizes.models .model.size (toString .degree) -}}
{{- $weights := int64 (index $rank.weightBytes (eq .quantization "none" | ternary $own .quantization)) -}}
{{- $each := int64 (index $rank.contextBytes (eq (.model.kvCacheDtype | default "auto") "fp8" | ternary "fp8" $own)) -}}
{{- $memory := int64 (mulf (index .root.Values.gpus .gpu).memoryGiB 1073741824) -}}
{{- $reserved := int64 .sizes.reservedBytes -}}
{{- $free := max 0 (sub (sub $memory $reserved) $weights) -}}
{{- dict "sequences" (div $free $each) "weights" (include "gemline.gib" $weights) "memory" (include "gemline.gib" $memory) "reserved" (include "gemline.gib" $reserved) "each" (include "gemline.gib" $each) | toJson -}}
{{- end -}}

{{- define "gemline.gib" -}}
{{- printf "%.1f GiB" (divf . 1073741824.0) -}}
{{- end -}}

"""Names in a folder that are not those of fields or parameters here, by where they come from: accepted, not refused."""

POSITION_IDS_BUFFERS = r"(^|\.)position_ids$"  # buffers in the weights of old folders, which hold 0, 1, 2, ...

# Arguments and attributes of transformers' PreTrainedConfig that are not fields of the dataclass.
PRETRAINED_CONFIG = {
    "model_type",
    "transformers_version",
    "_name_or_path",
    "name_or_path",
    "_commit_hash",
    "num_labels",
    "torch_dtype",
    "output_attentions",
    "per_layer_config",
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
    "_attn_implementation_autoset",
    "experts_implementation",
    "_experts_implementation_internal",
}

# Written or read by other parts of transformers: custom code, quantisation, fused layers, weight files, output capture.
OTHER_PARTS = {
    "auto_map",
    "quantization_config",
    "fusion_config",
    "transformers_weights",
    "tie_last_hidden_states",
    "tokenizer_class",
    "processor_class",
}

# Attributes of the PretrainedConfig of transformers 4, which wrote them into every folder.
TRANSFORMERS_4 = {
    "torchscript",
    "use_bfloat16",
    "pruned_heads",
    "tie_word_embeddings",
    "tie_encoder_decoder",
    "is_decoder",
    "add_cross_attention",
    "cross_attention_hidden_size",
    "finetuning_task",
    "task_specific_params",
    "prefix",
    "tf_legacy_loss",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "sep_token_id",
    "decoder_start_token_id",
}

# Fields of transformers' CLIP and SigLIP configurations, today's or old ones, that not all of ours have.
TRANSFORMERS_FAMILIES = {
    "initializer_range",
    "initializer_factor",
    "dropout",
    "use_cache",
    "gradient_checkpointing",
}

# In the `vision_config` of vision-language models: PaliGemma's, LLaVA's, Gemma 3's and LFM2-VL's folders have some.
VISION_LANGUAGE = {
    "num_image_tokens",
    "num_positions",
    "projection_dim",
    "projector_hidden_act",
    "vocab_size",
}

KNOWN_NAMES = PRETRAINED_CONFIG | OTHER_PARTS | TRANSFORMERS_4 | TRANSFORMERS_FAMILIES

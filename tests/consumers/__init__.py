# SPDX-License-Identifier: MIT
"""How Megatron-LM, SGLang, vLLM and TensorRT-LLM call DeepEP, over `deep_ep` of compat/.

A package, so that its folder is not on sys.path, where `vllm` would be found in place of vLLM.
"""

"""What engines share whose steps are one flat run of tokens of many requests: vLLM, SGLang.

Their layers have the same conventions: linear layers that know their widths, norms that add the residual
stream themselves, heads' outputs side by side before the output projection. Nothing of an engine is imported
here.
"""

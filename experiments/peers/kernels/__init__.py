"""Adapters to kernels of other projects, as baselines: ``kernelswap kernels bench OP --peers experiments/peers/kernels``.

Each file stands alone, so that it can be copied into another folder. The libraries are the user's to bring: installed, or
unpacked into a folder of their own that a second ``--peers`` names. Written against vLLM 0.25.0, whose wheel has them all.
"""

"""How weights are stored: a scheme turns a part's tensors into ops and what they bind.

scheme        what a scheme is; unquantized, on_load: of checkpoints of floats
gptq, awq, auto_round, compressed_tensors, fp8, bitsandbytes, mxfp4   the formats of checkpoints
modules, experts, canonical, packing, rounding, settings              what they share
table         by which name each is found

A new format is a class that does what ``scheme.Scheme`` says, and an entry of ``table.METHODS``. Nothing else in the framework
knows how a weight is stored.
"""

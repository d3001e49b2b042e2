"""The kernel author's tools: conformance, benchmarks, ahead-of-time compilation, gates, tuning. The contract never imports them."""

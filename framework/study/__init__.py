"""Studies of an engine: workloads, the driver, metrics, results and what is drawn from them."""

"""Load on any OpenAI-compatible server over HTTP, with the workloads, arrivals and metrics of a run in this process."""

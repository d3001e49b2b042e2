"""Bodies of requests and answers, with OpenAI's names and those that vLLM adds."""

"""Structured output: what a request's text must look like, and the matchers that hold its tokens to it."""

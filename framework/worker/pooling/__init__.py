"""Steps of models that pool."""

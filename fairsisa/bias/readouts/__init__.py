"""How a model is asked: likelihoods, probabilities, embeddings and texts, batch by batch."""

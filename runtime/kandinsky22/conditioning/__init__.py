"""What the decoder is conditioned on: text, pictures, and the prior that makes image embeddings of them."""

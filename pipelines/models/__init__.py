"""Networks: temporal layers inserted into image networks, autoencoders, conditioning."""

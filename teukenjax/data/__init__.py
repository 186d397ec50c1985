"""Text in, token stores, and the stream of windows that training reads."""

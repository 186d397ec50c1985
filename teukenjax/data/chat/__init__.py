"""Conversations: how they are read, rendered, tokenised with loss masks, and packed."""

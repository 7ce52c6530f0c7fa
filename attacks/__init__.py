"""Attacks: search for wrongly classified points of a ball; what they miss proves nothing."""

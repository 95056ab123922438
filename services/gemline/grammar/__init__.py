"""Constraints compiled by llguidance, and the matchers that follow an answer through them."""

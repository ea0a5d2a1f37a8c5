"""Faster forms of what `models` and `density` define, each equal to its definition within a stated rounding.

What is used is chosen in one place each: `forms.choose_form` for the generator of the posterior chains, and
`prior_chain.run_prior_chain` for the chains of the prior.
"""

"""Faster implementations of chains and networks. Each equals its definition within a stated rounding error.

`networks` and `density` hold the definitions. Two functions choose what is used: `forms.choose_form` for the generator
of the posterior chains, and `prior_chain.run_prior_chain` for the chains of the prior.
"""

"""A stand-in for Transformer Engine, which cannot be imported without a GPU.

It has the names, signatures and life cycle of what we use of release 2.10 and later, written after
its source: what is inside a test that passes here are our names and calls, never Transformer
Engine's arithmetic. Products are done in the dtype of torch's autocast.
"""

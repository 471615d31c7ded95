"""The recurrent part of a sequence as two Triton kernels: forward and back.

A program owns a few samples and runs all steps of a range for them, so programs never wait for each
other. Within a program every step is a series of phases; :mod:`rims.scan.torch.loop` computes the
same in PyTorch. A phase passes its results to the next in a scratch buffer of the program, small
enough to stay in the caches. A barrier stands between phases because the threads that read it are
not those that wrote it. For the same reason a phase that changes scratch in place has a barrier
between its loads and its stores.

Scratch is padded to whole tiles and holds zeros in the padding, so only the caller's tensors need
masks. Whatever is selected is selected with ``tl.where``: zero times NaN is NaN.
"""

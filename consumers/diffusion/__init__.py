# SPDX-License-Identifier: Apache-2.0
"""Quantization and feature caching of diffusion transformers, together.

The models are those of diffusers: ``DiTTransformer2DModel``, as ``DiTPipeline`` runs it. The core
of lutwise knows nothing of them; this package uses its formats, numerics, range search and
solvers. Install ``lutwise[diffusion]``.

Reference:
    "Q&C: When Quantization Meets Cache in Efficient Image Generation", arXiv 2503.02508;
    "Scalable Diffusion Models with Transformers", arXiv 2212.09748.
"""

# SPDX-License-Identifier: Apache-2.0
"""Settings of the tests of quantization."""

import torch

# The nets are tiny: a second thread costs more than it brings, the more so on a busy machine.
torch.set_num_threads(1)

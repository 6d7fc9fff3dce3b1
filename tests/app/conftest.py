# SPDX-License-Identifier: Apache-2.0
"""A shell's background jobs ignore Ctrl-C, and so do their children: tests of it need it back."""

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

// SPDX-License-Identifier: Apache-2.0
// Magnitude of a minifloat with E exponent and M mantissa bits, as sig << sh in units of the
// smallest subnormal. Codes for Inf and NaN are not recognised: they must not be applied.
module lw_decode #(
    parameter E = 1,
    parameter M = 0
) (
    input  [E+M-1:0] x,
    output [M:0]     sig,
    output [E-1:0]   sh
);
  wire [E-1:0] field = x[E+M-1:M];
  wire         normal = |field;
  assign sh = field - normal;
  generate
    if (M > 0) begin : g_mantissa
      assign sig = {normal, x[M-1:0]};
    end else begin : g_power_of_two
      assign sig = normal;
    end
  endgenerate
endmodule

// SPDX-License-Identifier: Apache-2.0
// One output bit as a truth table of N inputs: y = T[x].
module lw_table #(
    parameter N = 1,
    parameter [(1<<N)-1:0] T = 0
) (
    input  [N-1:0] x,
    output         y
);
`ifdef LUTWISE_ALU
  \$lut #(.WIDTH(N), .LUT(T)) lut (.A(x), .Y(y));
`else
  assign y = T[x];
`endif
endmodule

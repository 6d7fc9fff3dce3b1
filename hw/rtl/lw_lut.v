// SPDX-License-Identifier: Apache-2.0
// A function of at most six inputs that stays one LUT: y = T[x].
// The mapper neither merges it with what reads it nor takes it apart.
module lw_lut #(
    parameter N = 1,
    parameter [(1<<N)-1:0] T = 0
) (
    input  [N-1:0] x,
    output         y
);
`ifdef LUTWISE_ALU
  localparam [63:0] INIT = {(64 >> N) {T}};
  wire [5:0] in = {{(6 - N) {1'b0}}, x};
  LUT6 #(
      .INIT(INIT)
  ) lut (
      .I0(in[0]), .I1(in[1]), .I2(in[2]), .I3(in[3]), .I4(in[4]), .I5(in[5]), .O(y)
  );
`else
  assign y = T[x];
`endif
endmodule

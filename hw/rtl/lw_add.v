// SPDX-License-Identifier: Apache-2.0
// y = a + b + cin, modulo 2**W.
// With LUTWISE_ALU defined (and yosys -icells) the adder stays one carry chain; the optimiser
// would otherwise merge neighbouring adders into compressors that cost more LUTs.
module lw_add #(
    parameter W = 1
) (
    input  [W-1:0] a,
    input  [W-1:0] b,
    input          cin,
    output [W-1:0] y
);
`ifdef LUTWISE_ALU
  wire [W-1:0] unused_x;
  wire [W-1:0] unused_co;
  \$alu #(
      .A_SIGNED(0), .B_SIGNED(0), .A_WIDTH(W), .B_WIDTH(W), .Y_WIDTH(W)
  ) alu (
      .A(a), .B(b), .CI(cin), .BI(1'b0), .Y(y), .X(unused_x), .CO(unused_co)
  );
`else
  assign y = a + b + {{W{1'b0}}, cin};
`endif
endmodule

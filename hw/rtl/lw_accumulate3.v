// SPDX-License-Identifier: Apache-2.0
// y = (restart ? 0 : acc) + b + c + cin0 + cin1, modulo 2**W, for an acc that is y's register.
// As lw_add3, with a fifth input in each LUT.
module lw_accumulate3 #(
    parameter W = 1
) (
    input  [W-1:0] acc,
    input          restart,
    input  [W-1:0] b,
    input  [W-1:0] c,
    input          cin0,
    input          cin1,
    output [W-1:0] y
);
`ifdef LUTWISE_ALU
  localparam CELLS = (W + 7) / 8;
  wire [W:0] majority;
  wire [8*CELLS-1:0] select, data, sum, carry;
  assign majority[0] = cin1;
  assign y = sum[W-1:0];
  genvar i;
  generate
    for (i = 0; i < 8 * CELLS; i = i + 1) begin : g_bit
      if (i < W) begin : g_used
        LUT6_2 #(
            .INIT(64'hc33c_6996_c0c0_e8e8)
        ) lut (
            .I0(acc[i]), .I1(b[i]), .I2(c[i]), .I3(majority[i]), .I4(restart), .I5(1'b1),
            .O5(majority[i+1]), .O6(select[i])
        );
        assign data[i] = majority[i];
      end else begin : g_unused
        assign select[i] = 1'b0;
        assign data[i] = 1'b0;
      end
    end
    for (i = 0; i < CELLS; i = i + 1) begin : g_carry
      CARRY8 chain (
          .CI(i == 0 ? cin0 : carry[8*i-1]), .CI_TOP(1'b0),
          .DI(data[8*i+:8]), .S(select[8*i+:8]), .O(sum[8*i+:8]), .CO(carry[8*i+:8])
      );
    end
  endgenerate
`else
  assign y = (restart ? {W{1'b0}} : acc) + b + c + {{W{1'b0}}, cin0} + {{W{1'b0}}, cin1};
`endif
endmodule

// SPDX-License-Identifier: Apache-2.0
// y = a >= b, two's complement, two bits to a LUT and carry position.
module lw_at_least #(
    parameter W = 1
) (
    input  [W-1:0] a,
    input  [W-1:0] b,
    output         y
);
`ifdef LUTWISE_ALU
  localparam PAIRS = (W + 1) / 2;
  localparam CELLS = (PAIRS + 7) / 8;
  // The sign bits change places, so that the comparison is unsigned.
  wire [2*PAIRS-1:0] x = {{(2*PAIRS-W){1'b0}}, b[W-1], a[W-2:0]};
  wire [2*PAIRS-1:0] z = {{(2*PAIRS-W){1'b0}}, a[W-1], b[W-2:0]};
  wire [8*CELLS-1:0] equal, greater, sum, carry;
  genvar i;
  generate
    for (i = 0; i < 8 * CELLS; i = i + 1) begin : g_pair
      if (i < PAIRS) begin : g_used
        // O6: both bits equal; O5: x's pair above z's. I0, I1 are x, I2, I3 are z.
        LUT6_2 #(
            .INIT(64'h8421_8421_08ce_08ce)
        ) lut (
            .I0(x[2*i]), .I1(x[2*i+1]), .I2(z[2*i]), .I3(z[2*i+1]), .I4(1'b0), .I5(1'b1),
            .O5(greater[i]), .O6(equal[i])
        );
      end else begin : g_unused
        assign equal[i] = 1'b1;
        assign greater[i] = 1'b0;
      end
    end
    for (i = 0; i < CELLS; i = i + 1) begin : g_carry
      CARRY8 chain (
          .CI(i == 0 ? 1'b1 : carry[8*i-1]), .CI_TOP(1'b0),
          .DI(greater[8*i+:8]), .S(equal[8*i+:8]), .O(sum[8*i+:8]), .CO(carry[8*i+:8])
      );
    end
  endgenerate
  assign y = carry[PAIRS-1];
`else
  assign y = $signed(a) >= $signed(b);
`endif
endmodule

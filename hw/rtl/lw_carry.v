// SPDX-License-Identifier: Apache-2.0
// A carry chain with two functions in front of each position: y[i] = s ^ c[i] and
// c[i+1] = s ? c[i] : d, where s is a function of all six inputs of the position, and d is one of
// the first five or, with BYPASS, the sixth input itself: one LUT per position.
module lw_carry #(
    parameter N = 1,
    parameter [64*N-1:0] SELECT = 0,
    parameter [32*N-1:0] DATA = 0,
    parameter [N-1:0] BYPASS = 0
) (
    input  [6*N-1:0] x,
    input            cin,
    output [N-1:0]   y
);
  genvar i;
`ifdef LUTWISE_ALU
  localparam CELLS = (N + 7) / 8;
  wire [8*CELLS-1:0] select, data, sum, carry;
  assign y = sum[N-1:0];
  generate
    for (i = 0; i < 8 * CELLS; i = i + 1) begin : g_bit
      if (i >= N) begin : g_unused
        assign select[i] = 1'b0;
        assign data[i] = 1'b0;
      end else begin : g_used
        if (SELECT[64*i+:64] == 64'd0) begin : g_none
          assign select[i] = 1'b0;
        end else begin : g_select
          LUT6 #(
              .INIT(SELECT[64*i+:64])
          ) lut (
              .I0(x[6*i]), .I1(x[6*i+1]), .I2(x[6*i+2]), .I3(x[6*i+3]), .I4(x[6*i+4]),
              .I5(x[6*i+5]), .O(select[i])
          );
        end
        if (BYPASS[i]) begin : g_bypass
          assign data[i] = x[6*i+5];
        end else if (DATA[32*i+:32] == 32'd0) begin : g_zero
          assign data[i] = 1'b0;
        end else begin : g_data
          LUT5 #(
              .INIT(DATA[32*i+:32])
          ) lut (
              .I0(x[6*i]), .I1(x[6*i+1]), .I2(x[6*i+2]), .I3(x[6*i+3]), .I4(x[6*i+4]),
              .O(data[i])
          );
        end
      end
    end
    for (i = 0; i < CELLS; i = i + 1) begin : g_carry
      CARRY8 chain (
          .CI(i == 0 ? cin : carry[8*i-1]), .CI_TOP(1'b0),
          .DI(data[8*i+:8]), .S(select[8*i+:8]), .O(sum[8*i+:8]), .CO(carry[8*i+:8])
      );
    end
  endgenerate
`else
  wire [N:0] carry;
  assign carry[0] = cin;
  generate
    for (i = 0; i < N; i = i + 1) begin : g_bit
      wire [63:0] select_table = SELECT[64*i+:64];
      wire [31:0] data_table = DATA[32*i+:32];
      wire select = select_table[x[6*i+:6]];
      wire data = BYPASS[i] ? x[6*i+5] : data_table[x[6*i+:5]];
      assign y[i] = select ^ carry[i];
      assign carry[i+1] = select ? carry[i] : data;
    end
  endgenerate
`endif
endmodule

// SPDX-License-Identifier: Apache-2.0
// One radix-4 Booth row: y = prev + d * x with the digit d in -2..2 written as three bits of the
// multiplier. Selecting the multiple needs five inputs and the sum one more: one LUT6 per bit.
module lw_booth_row #(
    parameter W = 4
) (
    input  [W-1:0] x,
    input  [2:0]   digit,
    input  [W-1:0] prev,
    output [W-1:0] y
);
  wire         one = digit[1] ^ digit[0];
  wire         two = (digit[2] ^ digit[1]) & ~one;
  wire [W-1:0] twice = {x[W-2:0], 1'b0};
  wire [W-1:0] multiple = (({W{one}} & x) | ({W{two}} & twice)) ^ {W{digit[2]}};
  lw_add #(.W(W)) sum (.a(prev), .b(multiple), .cin(digit[2]), .y(y));
endmodule

// p = x * b by radix-4 Booth rows, least significant digit first.
// X_SIGNED and B_SIGNED say whether an operand is two's complement.
module lw_booth #(
    parameter X = 2,
    parameter X_SIGNED = 1,
    parameter B = 2,
    parameter B_SIGNED = 1
) (
    input  [X-1:0]   x,
    input  [B-1:0]   b,
    output [X+B-1:0] p
);
  localparam ROWS = B_SIGNED ? (B + 1) / 2 : (B + 2) / 2;
  localparam W = X + 2 + (X_SIGNED ? 0 : 1);
  localparam FULL = W + 2 * (ROWS - 1);
  wire            x_top = X_SIGNED ? x[X-1] : 1'b0;
  wire            b_top = B_SIGNED ? b[B-1] : 1'b0;
  wire [W-1:0]    x_wide = {{(W-X){x_top}}, x};
  wire [2*ROWS+1:0] b_wide = {{(2*ROWS+1-B){b_top}}, b, 1'b0};
  wire [FULL-1:0] full;
  genvar r;
  generate
    for (r = 0; r < ROWS; r = r + 1) begin : row
      wire [W-1:0] prev;
      wire [W-1:0] y;
      if (r == 0) begin : g_first
        assign prev = {W{1'b0}};
      end else begin : g_next
        assign prev = {{2{row[r-1].y[W-1]}}, row[r-1].y[W-1:2]};
      end
      lw_booth_row #(.W(W)) unit (
          .x(x_wide), .digit(b_wide[2*r+2:2*r]), .prev(prev), .y(y)
      );
      if (r == ROWS - 1) begin : g_high
        assign full[FULL-1:2*r] = y;
      end else begin : g_low
        assign full[2*r+1:2*r] = y[1:0];
      end
    end
  endgenerate
  assign p = full[X+B-1:0];
endmodule

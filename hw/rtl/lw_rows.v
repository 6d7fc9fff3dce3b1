// SPDX-License-Identifier: Apache-2.0
// p = x * b, unsigned, as a chain of adders whose AND gates share the adder's LUTs.
// The first row adds two partial products, every further row one. B >= 2.
module lw_rows #(
    parameter X = 2,
    parameter B = 2
) (
    input  [X-1:0]   x,
    input  [B-1:0]   b,
    output [X+B-1:0] p
);
  assign p[0] = x[0] & b[0];
  genvar r;
  generate
    for (r = 1; r < B; r = r + 1) begin : row
      wire [X:0] prev;
      wire [X:0] y;
      if (r == 1) begin : g_first
        assign prev = {2'b00, x[X-1:1] & {(X-1){b[0]}}};
      end else begin : g_next
        assign prev = {1'b0, row[r-1].y[X:1]};
      end
      lw_add #(.W(X + 1)) sum (
          .a(prev), .b({1'b0, x & {X{b[r]}}}), .cin(1'b0), .y(y)
      );
      if (r == B - 1) begin : g_high
        assign p[X+B-1:r] = y;
      end else begin : g_low
        assign p[r] = y[0];
      end
    end
  endgenerate
endmodule

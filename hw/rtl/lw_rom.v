// SPDX-License-Identifier: Apache-2.0
// One column of a read-only memory: y = INIT[address], 64 words to a LUT, then the slice's own
// multiplexers for up to 256 words, then LUTs. Addresses are below DEPTH.
module lw_rom #(
    parameter DEPTH = 1,
    parameter A = 1,
    parameter [DEPTH-1:0] INIT = 0
) (
    input  [A-1:0] address,
    output         y
);
`ifdef LUTWISE_ALU
  localparam BLOCKS = (DEPTH + 63) / 64;
  localparam GROUPS = (BLOCKS + 3) / 4;
  localparam [64*4*GROUPS-1:0] WORDS = INIT;
  localparam TOP = A > 8 ? A : 9;
  wire [TOP-1:0] wide = address;
  wire [4*GROUPS-1:0] leaf;
  wire [GROUPS-1:0] group;
  genvar i;
  generate
    for (i = 0; i < 4 * GROUPS; i = i + 1) begin : g_leaf
      if (i < BLOCKS) begin : g_used
        if (A < 6) begin : g_small
          \$lut #(.WIDTH(A), .LUT(WORDS[(1<<A)-1:0])) lut (.A(address), .Y(leaf[i]));
        end else begin : g_full
          \$lut #(.WIDTH(6), .LUT(WORDS[64*i+:64])) lut (.A(address[5:0]), .Y(leaf[i]));
        end
      end else begin : g_unused
        assign leaf[i] = 1'b0;
      end
    end
    for (i = 0; i < GROUPS; i = i + 1) begin : g_group
      if (BLOCKS == 1) begin : g_one
        assign group[i] = leaf[0];
      end else begin : g_two
        wire low, high;
        MUXF7 m0 (.I0(leaf[4*i]), .I1(leaf[4*i+1]), .S(wide[6]), .O(low));
        if (4 * i + 2 < BLOCKS) begin : g_four
          MUXF7 m1 (.I0(leaf[4*i+2]), .I1(leaf[4*i+3]), .S(wide[6]), .O(high));
          MUXF8 m2 (.I0(low), .I1(high), .S(wide[7]), .O(group[i]));
        end else begin : g_short
          assign high = 1'b0;
          assign group[i] = low & ~wide[7];
        end
      end
    end
  endgenerate
  wire [(1<<(TOP-8))-1:0] groups = group;
  assign y = GROUPS == 1 ? group[0] : groups[wide[TOP-1:8]];
`else
  assign y = INIT[address];
`endif
endmodule

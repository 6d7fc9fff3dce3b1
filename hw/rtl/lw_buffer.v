// SPDX-License-Identifier: Apache-2.0
// A memory of DEPTH words with one write and one read port; reading takes no clock edge.
module lw_buffer #(
    parameter DEPTH = 2,
    parameter A = 1,
    parameter W = 1
) (
    input          clk,
    input          write,
    input  [A-1:0] write_address,
    input  [W-1:0] write_data,
    input  [A-1:0] read_address,
    output [W-1:0] read_data
);
`ifdef LUTWISE_ALU
  // Eight LUTs hold 32 words of 14 bits or 64 words of 7 bits beside the port that writes.
  localparam SHORT = DEPTH <= 32;
  localparam BITS = SHORT ? 14 : 7;
  localparam COLUMNS = (W + BITS - 1) / BITS;
  localparam BANKS = (DEPTH + 63) / 64;
  wire [15:0] wa = write_address, ra = read_address;
  wire [BITS*COLUMNS-1:0] in = write_data;
  wire [BITS*COLUMNS-1:0] out[0:BANKS-1];
  genvar b, c;
  generate
    for (b = 0; b < BANKS; b = b + 1) begin : g_bank
      wire enable = write & (BANKS == 1 | wa[15:6] == b);
      for (c = 0; c < COLUMNS; c = c + 1) begin : g_column
        if (SHORT) begin : g_short
          RAM32M16 ram (
              .ADDRA(ra[4:0]), .ADDRB(ra[4:0]), .ADDRC(ra[4:0]), .ADDRD(ra[4:0]),
              .ADDRE(ra[4:0]), .ADDRF(ra[4:0]), .ADDRG(ra[4:0]), .ADDRH(wa[4:0]),
              .DIA(in[14*c+:2]), .DIB(in[14*c+2+:2]), .DIC(in[14*c+4+:2]), .DID(in[14*c+6+:2]),
              .DIE(in[14*c+8+:2]), .DIF(in[14*c+10+:2]), .DIG(in[14*c+12+:2]), .DIH(2'b00),
              .DOA(out[b][14*c+:2]), .DOB(out[b][14*c+2+:2]), .DOC(out[b][14*c+4+:2]),
              .DOD(out[b][14*c+6+:2]), .DOE(out[b][14*c+8+:2]), .DOF(out[b][14*c+10+:2]),
              .DOG(out[b][14*c+12+:2]), .WCLK(clk), .WE(enable)
          );
        end else begin : g_long
          RAM64M8 ram (
              .ADDRA(ra[5:0]), .ADDRB(ra[5:0]), .ADDRC(ra[5:0]), .ADDRD(ra[5:0]),
              .ADDRE(ra[5:0]), .ADDRF(ra[5:0]), .ADDRG(ra[5:0]), .ADDRH(wa[5:0]),
              .DIA(in[7*c]), .DIB(in[7*c+1]), .DIC(in[7*c+2]), .DID(in[7*c+3]),
              .DIE(in[7*c+4]), .DIF(in[7*c+5]), .DIG(in[7*c+6]), .DIH(1'b0),
              .DOA(out[b][7*c]), .DOB(out[b][7*c+1]), .DOC(out[b][7*c+2]), .DOD(out[b][7*c+3]),
              .DOE(out[b][7*c+4]), .DOF(out[b][7*c+5]), .DOG(out[b][7*c+6]),
              .WCLK(clk), .WE(enable)
          );
        end
      end
    end
  endgenerate
  wire [BITS*COLUMNS-1:0] word = out[BANKS == 1 ? 0 : ra[15:6]];
  assign read_data = word[W-1:0];
`else
  reg [W-1:0] memory[0:DEPTH-1];
  always @(posedge clk) if (write) memory[write_address] <= write_data;
  assign read_data = memory[read_address];
`endif
endmodule

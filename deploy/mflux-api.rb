# A formula for a tap of your own: put in the address and the checksum of the wheel that you built (docs/install.md).
class MfluxApi < Formula
  desc "FLUX.2 Klein image generation as a service"
  homepage "https://example.com/mflux-api"
  url "https://example.com/mflux_api-2.0.0-py3-none-any.whl", using: :nounzip
  sha256 "0000000000000000000000000000000000000000000000000000000000000000"
  license "Apache-2.0"

  depends_on arch: :arm64
  depends_on :macos
  depends_on "python@3.13"
  depends_on "uv"

  def install
    (buildpath/"overrides.txt").write <<~TEXT
      mlx==0.32.2
      torch ; sys_platform == "never"
    TEXT
    ENV["UV_TOOL_DIR"] = libexec
    ENV["UV_TOOL_BIN_DIR"] = bin
    system "uv", "tool", "install", "--python", "python3.13", "--overrides", "overrides.txt", Dir["*.whl"].first
  end

  service do
    run [opt_bin/"mflux-api", "serve", "--host", "127.0.0.1", "--port", "7861"]
    working_dir var/"mflux-api"
    keep_alive successful_exit: false
    log_path var/"log/mflux-api.log"
    error_log_path var/"log/mflux-api.log"
  end

  test do
    system bin/"mflux-api", "generate", "a red house", "--model", "demo"
  end
end

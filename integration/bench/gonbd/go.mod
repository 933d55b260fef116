module lunar/integration/bench/gonbd

go 1.26

require github.com/pojntfx/go-nbd v0.3.2

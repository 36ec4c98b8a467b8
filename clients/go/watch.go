package pseudoword

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// maxOutage is how long a server may be unavailable before a watch fails; retryPause is the pause between attempts.
	maxOutage  = time.Minute
	retryPause = 500 * time.Millisecond
)

// follow opens a watch and calls handle with each message, until handle returns true for the last one. A watch that breaks
// is opened again. maxOutage is counted from the first of consecutive failures: a watch may be silent for longer.
func follow[M any](
	ctx context.Context,
	open func(context.Context) (grpc.ServerStreamingClient[M], error),
	handle func(*M) bool,
) error {
	var downSince time.Time
	for {
		ended, err := read(ctx, open, func(message *M) bool {
			downSince = time.Time{}
			return handle(message)
		})
		if ended {
			return nil
		}
		if err != nil {
			if downSince.IsZero() {
				downSince = time.Now()
			}
			if status.Code(err) != codes.Unavailable || time.Since(downSince) > maxOutage {
				return FromCall(err)
			}
		}
		select {
		case <-ctx.Done():
			return FromCall(status.FromContextError(ctx.Err()).Err())
		case <-time.After(retryPause):
		}
	}
}

// read reports whether handle got the last message. For a stream that ends before, it returns false without an error.
func read[M any](
	ctx context.Context,
	open func(context.Context) (grpc.ServerStreamingClient[M], error),
	handle func(*M) bool,
) (bool, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := open(ctx)
	if err != nil {
		return false, err
	}
	for {
		message, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if handle(message) {
			return true, nil
		}
	}
}

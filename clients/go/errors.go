package pseudoword

import (
	"context"
	"fmt"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Error is the error of a failed call: its status with the details that pseudoword's servers send.
type Error struct {
	// Code is the status code.
	Code codes.Code
	// Message is a message for people.
	Message string
	// Reason is a stable identifier for programs, such as "WORD_UNKNOWN" or "ETAG_MISMATCH"; empty if the error comes
	// from the network and not from a server.
	Reason string
	// Metadata has facts about the error, such as the unknown word.
	Metadata map[string]string
	// Violations are the invalid fields of the request.
	Violations []Violation
	// RetryAfter is the time after which a retry may succeed; 0 if the server did not set it.
	RetryAfter time.Duration

	status *status.Status
}

// Violation is one invalid field of a request.
type Violation struct {
	Field, Description string
}

// Error returns the message, followed by the violations that it does not contain.
func (e *Error) Error() string {
	var text strings.Builder
	text.WriteString(orElse(e.Message, e.Code.String()))
	for _, violation := range e.Violations {
		if !strings.Contains(e.Message, violation.Description) {
			fmt.Fprintf(&text, "; %s: %s", violation.Field, violation.Description)
		}
	}
	return text.String()
}

// GRPCStatus lets status.Code and status.Convert read the error.
func (e *Error) GRPCStatus() *status.Status { return e.status }

// Unwrap returns context.Canceled for CANCELLED and context.DeadlineExceeded for DEADLINE_EXCEEDED, so that errors.Is finds
// them.
func (e *Error) Unwrap() error {
	switch e.Code {
	case codes.Canceled:
		return context.Canceled
	case codes.DeadlineExceeded:
		return context.DeadlineExceeded
	default:
		return nil
	}
}

// FromCall converts the error of a generated client's call to *Error. It returns nil for nil, and any error that is not a
// gRPC status unchanged.
func FromCall(err error) error {
	if err == nil {
		return nil
	}
	found, ok := status.FromError(err)
	if !ok {
		return err
	}
	return fromStatus(found)
}

// FromStatus converts a status inside a response, such as that of a failed job or an unresolved word, to *Error.
func FromStatus(found *spb.Status) *Error { return fromStatus(status.FromProto(found)) }

func fromStatus(found *status.Status) *Error {
	failure := &Error{Code: found.Code(), Message: found.Message(), status: found}
	for _, detail := range found.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			failure.Reason, failure.Metadata = detail.GetReason(), detail.GetMetadata()
		case *errdetails.BadRequest:
			for _, violation := range detail.GetFieldViolations() {
				failure.Violations = append(
					failure.Violations, Violation{Field: violation.GetField(), Description: violation.GetDescription()},
				)
			}
		case *errdetails.RetryInfo:
			failure.RetryAfter = detail.GetRetryDelay().AsDuration()
		}
	}
	return failure
}
